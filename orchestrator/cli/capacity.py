"""`orchestrate capacity`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.options import Environment, Json, new_app

app = new_app()


@app.command(
    epilog="Examples:  orchestrate capacity --endpoint digits --measure   |   "
    "orchestrate capacity --endpoint digits --rps 500 --p99-ms 20"
)
def capacity(
    endpoint: Annotated[str, typer.Option(help="The endpoint.")],
    rps: Annotated[float | None, typer.Option(min=0.001, max=1e9, help="Requests a second, of one row each.")] = None,
    p99_ms: Annotated[
        float | None, typer.Option("--p99-ms", min=0.001, max=1e6, help="What 99 of 100 requests may take at most, ms.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure first: golden samples in batches of each size; takes seconds.")
    ] = False,
    pool: Annotated[str, typer.Option(help="Pool to size; the endpoint's own when not given.")] = "",
    utilisation: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Busy share of a slot that is planned for.")
    ] = 0.7,
    environment: Environment = None,
    as_json: Json = False,
) -> None:
    """Say how many slots carry a load within a latency, from what was measured on such a device; all assumptions are printed.

    Without a measured curve for the pool's devices it refuses (exit 2); where no number of slots holds the latency: exit 1.
    """
    from orchestrator.app.capacity import Ask, size_pool
    from orchestrator.app.capacity import measure as measure_endpoint
    from orchestrator.app.wiring import open_workplace
    from orchestrator.cli.output import print_json, say
    from orchestrator.core.errors import UsageError

    if (rps is None) != (p99_ms is None) or (rps is None and not measure):
        raise UsageError("--rps and --p99-ms go together", hint="give both, or --measure, or all three")
    workplace = open_workplace(environment)
    answer: dict[str, Any] = {}
    if measure:
        curves = measure_endpoint(workplace, endpoint, say)
        answer["curves"] = [curve.to_json() for curve in curves]
    if rps is not None and p99_ms is not None:
        answer |= size_pool(workplace, Ask(endpoint, rps, p99_ms, pool, utilisation))
    if as_json:
        print_json(answer)
    else:
        print("\n".join(_lines(answer)))


def _lines(answer: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for curve in answer.get("curves", ()):
        lines.append(f"measured on {curve['device']}; beside the device {curve['overhead_us'] / 1000:.2f} ms")
        lines.append("  batch   mean ms    p99 ms    rows/s of a slot")
        for p in curve["points"]:
            rate = p["batch"] / p["mean_us"] * 1e6
            lines.append(f"  {p['batch']:>5} {p['mean_us'] / 1000:>9.3f} {p['p99_us'] / 1000:>9.3f} {rate:>13.0f}")
    if "slots" not in answer:
        return lines
    best, has = answer["best"], answer["pool_slots"]
    enough = f"pool {answer['pool']} has {has}" + (
        "" if has >= answer["slots"] else f": {answer['slots'] - has} too few"
    )
    lines += [
        f"{answer['slots']} slot{'s' * (answer['slots'] != 1)} of {answer['device']} for {answer['rps']:g} requests/s with a p99 of "
        f"{answer['p99_ms']:g} ms; {enough}",
        f"  batches of up to {best['batch']}, busy {best['utilisation']:.0%}, p99 at most {best['p99_ms']:.2f} ms",
        "  batch   slots   rps of a slot   p99 ms at most",
    ]
    for plan in answer["plans"]:
        slots = plan["slots"] or "-"
        lines.append(f"  {plan['batch']:>5} {slots:>7} {plan['per_slot_rps']:>15.0f} {plan['p99_ms']:>16.2f}")
    lines.append("assumed:")
    return [*lines, *(f"  - {text}" for text in answer["assumptions"])]
