"""Recipe + environment -> drafts: which steps there are, what each is told, and what each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from orchestrator.core.errors import PlanError
from orchestrator.environment import Environment
from orchestrator.plan import conversion
from orchestrator.plan.deployment import draft_deploy
from orchestrator.plan.model import Draft, Input, Retries
from orchestrator.plan.serving import bundle_entrypoints, serve_entrypoints, serve_spec
from orchestrator.recipe import Recipe
from orchestrator.recipe.model import Target

SourceDigests = Callable[[Sequence[str], Sequence[str]], Mapping[str, str]]
"""Entry points (`module:function`), words of a command -> digest of each of the user's files that they can reach."""

_GOLDEN_SAMPLES: Final = 16


def make_drafts(
    recipe: Recipe,
    environment: Environment,
    sources: SourceDigests,
    data: Mapping[str, str],
    origin: Mapping[str, str] | None = None,
    tools: Mapping[str, str] | None = None,
    strategy: Mapping[str, Any] | None = None,
) -> list[Draft]:
    """Return the recipe's steps.

    Args:
        recipe: The resolved recipe.
        environment: Where it runs.
        sources: Digests of the user's files.
        data: Identity of each dataset that the recipe declares.
        origin: Identity of what the recipe's `source:` names.
        tools: Format -> identity of the compiler for it on the site; empty or absent where there is none.
        strategy: How the deploy takes over from what is live, resolved against the pool's demands.

    Raises:
        PlanError: A part that another part needs is absent.
    """
    return _Drafts(recipe, environment, sources, data, origin or {}, tools or {}, strategy or {}).all()


class _Drafts:
    def __init__(
        self,
        recipe: Recipe,
        environment: Environment,
        sources: SourceDigests,
        data: Mapping[str, str],
        origin: Mapping[str, str],
        tools: Mapping[str, str],
        strategy: Mapping[str, Any],
    ) -> None:
        self._recipe = recipe
        self._environment = environment
        self._sources = sources
        self._data = data
        self._origin = origin
        self._tools = tools
        self._strategy = strategy
        self._cann = {"cann": tools.get("om", "")}  # its operator tables beat the shipped ones
        self._site = train_site(environment)
        self._own = tuple(step.name for step in recipe.steps)
        self._torch = recipe.model is not None and not (recipe.source is not None and recipe.source.is_graph)

    def all(self) -> list[Draft]:
        recipe = self._recipe
        drafts = [self._custom(index) for index in range(len(recipe.steps))]
        if recipe.train is not None:
            drafts += [self._preflight(), self._train()]
        elif recipe.source is not None:
            drafts += ([self._preflight()] if self._torch else []) + [self._source()]
        else:
            return drafts
        if recipe.evaluate is not None:
            drafts.append(self._evaluate())
        if self._torch:
            drafts.append(self._export())
        drafts += [self._forecast(target) for target in recipe.targets if conversion.has_forecast(target)]
        drafts.append(self._bundle())
        drafts += [self._compile(target) for target in recipe.targets]
        if recipe.samples is not None and (self._torch or recipe.targets):
            drafts.append(self._parity())
        drafts.append(self._register())
        if recipe.rollout is not None:
            drafts.append(draft_deploy(recipe, self._environment, self._tools, self._strategy))
        return drafts

    def _custom(self, index: int) -> Draft:
        step = self._recipe.steps[index]
        spec: dict[str, Any] = {"params": dict(step.params)}
        spec |= {"entrypoint": step.entrypoint} if step.entrypoint else {"command": list(step.command or ())}
        return Draft(
            name=step.name,
            kind="custom",
            site=self._site,
            spec=spec,
            inputs=tuple(Input(need, need, "files") for need in step.needs),
            sources=self._sources([step.entrypoint] if step.entrypoint else [], step.command or ()),
            data=self._data,
            retries=Retries(infra=1),
            timeout_s=step.timeout or 0.0,
        )

    def _preflight(self) -> Draft:
        samples = (
            [self._recipe.samples] if self._recipe.samples and not self._own else []
        )  # own steps may make their data
        spec = {**self._model_spec(), **self._cann, "samples": samples[0] if samples else None, "samples_count": 1}
        entrypoints = [self._factory(), *samples]
        if not self._own:
            spec |= serve_spec(self._recipe)
            entrypoints += serve_entrypoints(self._recipe)
        return self._worker("preflight", spec, entrypoints=entrypoints, data=self._data if samples else None)

    def _train(self) -> Draft:
        train = self._recipe.train
        assert train is not None
        spec: dict[str, Any] = {
            "params": dict(train.params),
            "workers": train.workers,
            "resources": train.resources.model_dump(mode="json"),
            "retries": train.retries.model_dump(mode="json"),
            "timeout_s": train.timeout or 0.0,
        }
        if self._recipe.model is not None:
            spec["model"] = self._recipe.model.model_dump(mode="json")
        if train.entrypoint is not None:
            spec["entrypoint"] = train.entrypoint
        else:
            spec["command"] = list(train.command or ())
        entrypoints = [train.entrypoint] if train.entrypoint else []
        after = (*self._own, "preflight") if self._recipe.model is not None else self._own
        return Draft(
            name="train",
            kind="train",
            site=self._site,
            spec=spec,
            after=after,
            sources=self._sources([*self._factories(), *entrypoints], train.command or ()),
            data=self._data,
            retries=Retries(**train.retries.model_dump(mode="json")),
            timeout_s=train.timeout or 0.0,
        )

    def _source(self) -> Draft:
        source = self._recipe.source
        assert source is not None
        spec: dict[str, Any] = {"source": source.model_dump(mode="json", exclude_none=True)}
        if self._recipe.model is not None:
            spec["model"] = self._recipe.model.model_dump(mode="json")
        if source.mlflow is not None:
            spec["tracking_uri"] = self._environment.tracking.uri
        after = (*self._own, "preflight") if self._torch else self._own
        return self._worker("source", spec, entrypoints=self._factories(), after=after, data=self._origin)

    def _evaluate(self) -> Draft:
        evaluate = self._recipe.evaluate
        assert evaluate is not None
        spec = {**self._model_spec(), "entrypoint": evaluate.entrypoint, "gates": list(evaluate.gates)}
        spec.pop("targets")
        inputs = (self._weights(),)
        return self._worker(
            "evaluate",
            spec,
            entrypoints=[evaluate.entrypoint, *self._factories()],
            inputs=inputs,
            timeout_s=evaluate.timeout or 0.0,
        )

    def _export(self) -> Draft:
        after = ("evaluate",) if self._recipe.evaluate is not None else ()
        entrypoints = [self._factory()]
        return self._worker(
            "export", self._model_spec(), entrypoints=entrypoints, inputs=(self._weights(),), after=after
        )

    def _bundle(self) -> Draft:
        spec = {**self._model_spec(), "name": self._recipe.name, "description": self._recipe.description}
        spec |= {"samples": self._recipe.samples, "samples_count": _GOLDEN_SAMPLES, **serve_spec(self._recipe)}
        inputs = [self._onnx()]
        if self._torch:
            inputs.append(self._weights())
        if self._recipe.evaluate is not None:
            inputs.append(Input("evaluation", "evaluate", "report"))
        inputs += conversion.forecast_inputs(self._recipe.targets)
        entrypoints = [*bundle_entrypoints(self._recipe), *self._factories()]
        return self._worker("bundle", spec, entrypoints=entrypoints, inputs=tuple(inputs))

    def _forecast(self, target: Target) -> Draft:
        spec = {**conversion.forecast_spec(self._recipe, target, self._model_spec()), **self._cann}
        entrypoints = [name for name in (spec["samples"], spec["evaluate"]) if name]
        return self._worker(
            "forecast", spec, name=conversion.forecast_name(target), entrypoints=entrypoints, inputs=(self._onnx(),)
        )

    def _compile(self, target: Target) -> Draft:
        conversion.check(target)
        tool = self._tools.get(target.format, "")
        spec = conversion.compile_spec(target, self._model_spec(), self._environment, tool)
        entrypoints = self._factories() if target.format == "torch" else []
        inputs = conversion.compile_inputs(target, self._onnx())
        return self._worker(
            "compile", spec, name=conversion.compile_name(target), entrypoints=entrypoints, inputs=inputs
        )

    def _parity(self) -> Draft:
        spec = conversion.parity_spec(self._recipe, self._model_spec(), self._environment)
        entrypoints = [*self._factories(), *(name for name in (spec["samples"], spec["evaluate"]) if name)]
        inputs = [
            *([self._weights()] if self._torch else []),
            self._onnx(),
            *conversion.parity_inputs(self._recipe.targets),
        ]
        return self._worker("parity", spec, entrypoints=entrypoints, inputs=tuple(inputs), after=("bundle",))

    def _register(self) -> Draft:
        inputs = [Input("bundle", "bundle", "bundle"), self._onnx()]
        if self._torch:
            inputs.append(self._weights())
        parity = self._recipe.samples is not None and (self._torch or self._recipe.targets)
        after = ("parity",) if parity else tuple(conversion.compile_name(target) for target in self._recipe.targets)
        spec = {"name": self._recipe.name}
        return Draft("register", "register", self._site, spec, tuple(inputs), after)

    def _worker(
        self,
        kind: str,
        spec: dict[str, Any],
        *,
        entrypoints: Sequence[str],
        name: str = "",
        inputs: tuple[Input, ...] = (),
        after: tuple[str, ...] = (),
        timeout_s: float = 0.0,
        data: Mapping[str, str] | None = None,
    ) -> Draft:
        return Draft(
            name=name or kind,
            kind=kind,
            site=self._site,
            spec=spec,
            inputs=inputs,
            after=after,
            sources=self._sources(entrypoints, ()) if entrypoints else {},
            data=data or (self._data if kind in {"evaluate", "bundle", "forecast", "parity"} else {}),
            retries=Retries(infra=1),
            timeout_s=timeout_s,
        )

    def _model_spec(self) -> dict[str, Any]:
        model = self._recipe.model
        return {
            "model": model.model_dump(mode="json") if model is not None else None,
            "order": [*model.inputs, "->", *model.outputs] if model is not None else [],  # canonical JSON sorts keys
            "targets": [target.model_dump(mode="json") for target in self._recipe.targets],
        }

    def _weights(self) -> Input:
        if not self._torch:
            return Input("onnx", "source", "onnx")
        return Input("checkpoint", "train" if self._recipe.train is not None else "source", "checkpoint")

    def _onnx(self) -> Input:
        return Input("onnx", "export" if self._torch else "source", "onnx")

    def _factory(self) -> str:
        if self._recipe.model is None:
            raise PlanError("the recipe trains or converts a model but has no `model:`", hint="add model.factory")
        return self._recipe.model.factory

    def _factories(self) -> list[str]:
        return [self._recipe.model.factory] if self._recipe.model is not None and self._torch else []


def train_site(environment: Environment) -> str:
    """Return the site that trains: the only one, or the first."""
    return next(iter(environment.sites))
