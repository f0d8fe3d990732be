"""Sentences that belong together, and the service's samples and metric. Written for this recipe; no data set is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from tokenizer import encode

Arrays = dict[str, np.ndarray]

TRIPLES = (  # a sentence, one that says nearly the same, and one that shares words or subject but not the meaning
    ("The cat sleeps on the warm windowsill.", "A kitten is napping by the sunny window.", "The windowsill needs a new coat of warm grey paint."),
    ("How do I reset my password?", "I forgot my login and need a new one.", "How do I change the language of the menu?"),
    ("The central bank raised interest rates again.", "Borrowing became more expensive after the bank's decision.", "We walked along the bank of the central river."),
    ("He plays the guitar in a small band.", "He is a guitarist in a little music group.", "He wears a small rubber band on his wrist."),
    ("The flight to Tokyo was delayed by two hours.", "Our plane to Japan left two hours late.", "The two chefs from Tokyo opened a restaurant."),
    ("She bought fresh apples at the market.", "She purchased fruit from a farm stand.", "Shares of Apple rose on the stock market."),
    ("The patient complained of severe headaches.", "The sick man said that his head hurt badly.", "The doctor was patient with the noisy children."),
    ("Heavy rain flooded the streets of the town.", "Roads were under water after the downpour.", "The town's streets were decorated for the parade."),
    ("The python script crashed with a memory error.", "Our program ran out of RAM and stopped.", "A python was found sleeping in the zoo's kitchen."),
    ("Turn the heating down at night to save energy.", "Lower the thermostat in the evening to use less power.", "She danced all night with a lot of energy."),
    ("The museum is closed on Mondays.", "You cannot visit the gallery on the first day of the week.", "The museum bought a painting for ten million."),
    ("Children learn languages faster than adults.", "Kids pick up a new tongue more quickly than grown-ups.", "Adults pay more than children for a ticket."),
    ("The battery of my phone drains too quickly.", "My mobile does not hold its charge for long.", "I dropped my phone into the sink."),
    ("The senator voted against the new tax law.", "The lawmaker opposed the bill on taxation.", "The new employee paid his tax on time."),
    ("Bake the bread for forty minutes until golden.", "Leave the loaf in the oven for two thirds of an hour.", "Gold has risen for forty days in a row."),
    ("A crane lifted the steel beams onto the roof.", "Construction machinery hoisted metal girders to the top.", "A crane stood on one leg in the shallow water."),
    ("The team won the championship in overtime.", "They became champions after extra time was played.", "The team worked overtime to ship the product."),
    ("It takes a year for the Earth to go round the Sun.", "Our planet completes an orbit in twelve months.", "The earth in the garden was dried by the sun."),
    ("The judge sentenced him to five years in prison.", "He was sent to jail for half a decade by the court.", "The judge gave the singer five points."),
    ("Vaccines protect people from dangerous diseases.", "Immunisation keeps the population safe from illness.", "Dangerous people are kept away from the crowd."),
    ("My train was cancelled, so I took a bus.", "I had to go by coach since the railway service was dropped.", "I train at the gym beside the bus station."),
    ("The new chip doubles the speed of the computer.", "The processor makes the machine twice as fast.", "He ate a chip while he waited at the computer."),
    ("Die Katze schläft auf dem Sofa.", "Die Katze liegt auf dem Sofa und schläft.", "Der Zug nach Berlin fährt um neun Uhr ab."),
    ("Le café est fermé aujourd'hui.", "Aujourd'hui le café n'est pas ouvert.", "Il a acheté une voiture rouge en Espagne."),
)  # fmt: skip


def evaluate(predict: Callable[[Arrays], Arrays]) -> dict[str, float]:
    """How often a sentence lies nearer to its paraphrase than to the other, and by how much on average."""
    texts = [text for triple in TRIPLES for text in triple]
    found = predict(encode(texts))["sentence_embedding"].reshape(len(TRIPLES), 3, -1)
    gap = ((found[:, 1] - found[:, 2]) * found[:, 0]).sum(1)
    return {"pair_accuracy": float((gap > 0).mean()), "pair_margin": float(gap.mean())}


def texts(n: int) -> Iterator[Arrays]:
    """What clients send, one at a time."""
    for text, _, _ in TRIPLES[:n]:
        yield {"text": np.array([text], object)}


def samples(n: int) -> Iterator[Arrays]:
    """Real inputs, one at a time; the first axis is the batch."""
    for text, _, _ in TRIPLES[:n]:
        yield encode([text])
