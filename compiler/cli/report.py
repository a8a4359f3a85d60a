"""Reports and summaries as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.built import Built, Split
from tersor.cli.console import clean, number, say, show, size, table

if TYPE_CHECKING:
    from tersor.analysis.summary import Scope, Summary
    from tersor.numerics.fidelity import Fidelity, OutputFidelity
    from tersor.pipeline.report import Decoded, Measurement, PassReport, Report, Timing


SHOWN_LABELS = 20


def show_report(report: Report, *, skips: bool) -> None:
    """Prints a compilation's report: passes, times, fidelity, size, decisions."""
    _show_passes(report.passes)
    _show_skips(report.passes, listed=skips)
    _show_times(report.against_input)
    if report.fidelity:
        show_fidelity(report.fidelity)
    _show_size(report.size_before, report.size_after)
    _show_decoded(report.decoded)
    for decision in report.decisions:
        say(str(decision))


def show_written(path: Path, model: Built) -> None:
    what = "the model only" if path.suffix == ".onnx" else "an artifact: tersor.load reads it"
    if path.suffix == ".onnx" and isinstance(model, Split):
        what = f"with its weights in {model.weights.name}, next to it: keep them together"
    say(f"wrote {path} ({what})")


def show_fidelity(fidelity: Fidelity) -> None:
    """Prints the outputs' fidelity to those of the input model, the worst first."""
    on = f"on {fidelity.on}" if fidelity.on else ""
    if fidelity.samples is not None:
        on += f" ({number(fidelity.samples)} samples)"
    if fidelity.worst is None:
        say(f"fidelity: unknown {on}".rstrip() + ": no output can be compared")
        return
    say(f"fidelity: {_share(fidelity.kept)} {on}".rstrip() + f", by {fidelity.worst.label}")
    rows = table(
        "output", ">elements", ">agree", ">mean cosine", ">worst", ">relative error", ">largest"
    )
    for one in fidelity.outputs:
        rows.add_row(clean(one.label), number(one.elements), *_figures(one))
    show(rows)
    for one in fidelity.outputs:
        if one.misplaced:
            say(f"{one.label}: NaN or infinity elsewhere in {number(one.misplaced)} elements")


def _figures(one: OutputFidelity) -> list[str]:
    shares = (one.agreement, one.mean_cosine, one.min_cosine)
    errors = (one.relative_error, one.max_error)
    return [
        *("" if v is None else _share(v) for v in shares),
        *("" if v is None else f"{v:.3g}" for v in errors),
    ]


def _share(value: float | None) -> str:
    """Six digits; prints 1 only for exactly 1."""
    if value is None:
        return "unknown"
    return "1" if value == 1 else f"{min(value, 0.999999):.6g}"


def _show_passes(passes: list[PassReport]) -> None:
    changed = [p for p in passes if p.rewrites or p.notes]
    if not changed:
        say("no pass changed anything")
        return
    # Artifacts do not store the passes' times.
    timed = any(step.seconds is not None for step in changed)
    rows = table("pass", ">rewrites", ">nodes", ">weights", *([">seconds"] if timed else []))
    for step in changed:
        nodes = number(step.nodes) if step.nodes is not None else "unknown"
        seconds = f"{step.seconds:.2f}" if step.seconds is not None else "unknown"
        cells = [clean(step.name), number(step.rewrites), nodes, size(step.weight_bytes), seconds]
        rows.add_row(*cells[: 5 if timed else 4])
    show(rows)
    for step in changed:
        for note in step.notes:
            say(f"{step.name}: {note}")


def _show_skips(passes: list[PassReport], *, listed: bool) -> None:
    # Without the duplicates of a pass that a recipe names twice.
    skips = list(dict.fromkeys((p.name, skip) for p in passes for skip in p.skips))
    if skips and not listed:
        say(f"rules did not apply in {len(skips)} places: list them with --skips")
    for name, skip in skips if listed else ():
        say(f"{name}: {skip}")


def _show_decoded(rows: list[Decoded]) -> None:
    if not rows:
        return
    say("decoded constants, for which the runtime has no kernel:")
    decoded = table("tensor", "stored as", ">numbers", "decoded", "why")
    for row in rows:
        when = "at loading" if row.loaded else "in the file"
        decoded.add_row(
            clean(row.tensor), clean(row.encoding), size(row.bytes), when, clean(row.why)
        )
    show(decoded)


def _show_times(measured: list[tuple[Measurement, Timing]]) -> None:
    if not measured:
        return
    times = table("built", "at", ">input ms", ">result ms", ">speedup", ">quartiles", ">pairs")
    for row, timing in measured:
        times.add_row(clean(row.candidate), clean(row.sizes), *time_cells(timing))
    show(times)


def time_cells(timing: Timing) -> list[str]:
    """Table cells of one paired measurement."""
    return [
        f"{timing.before_ms:.3f}",
        f"{timing.after_ms:.3f}",
        f"{timing.speedup:.2f}x",
        f"{timing.speedup_q1:.2f}–{timing.speedup_q3:.2f}",
        str(timing.pairs),
    ]


def _show_size(before: int | None, after: int | None) -> None:
    ratio = f", {after / before:.3f} of it" if before and after is not None else ""
    say(f"size: {size(before)} to {size(after)}{ratio}")


# -- summaries -----------------------------------------------------------------------------------


def show_summary(
    summary: Summary, at: dict[str, int], *, top: int, depth: int, remarks: Sequence[str] = ()
) -> None:
    """Prints one model: interface, counts, remarks, ops, largest weights, modules."""
    for name, type in summary.inputs:
        say(f"input   {name}: {type}")
    for name, type in summary.outputs:
        say(f"output  {name}: {type}")
    if summary.labels:
        say(f"labels: {_labels(summary.labels)}")
    say(f"nodes: {number(summary.nodes)}")
    say(f"parameters: {number(summary.parameters)} in {size(summary.weight_bytes)}")
    say(f"MACs: {_macs(summary, at)}")
    for remark in remarks:
        say(f"remark: {remark}")
    say()
    ops = table("op", ">nodes")
    for op, count in summary.ops.items():
        ops.add_row(clean(op), number(count))
    show(ops)
    _show_weights(summary, top)
    _show_scopes(summary.scopes, depth)


def _labels(labels: dict[str, str]) -> str:
    shown = [f"{number} {label}" for number, label in list(labels.items())[:SHOWN_LABELS]]
    rest = f" … {len(labels)} in all" if len(labels) > SHOWN_LABELS else ""
    return clean(", ".join(shown)) + rest


def show_comparison(before: Summary, after: Summary, at: dict[str, int], names: list[str]) -> None:
    """Prints two models side by side."""
    rows = table("", f">{clean(names[0])}", f">{clean(names[1])}", ">ratio")
    numbers = [
        ("nodes", before.nodes, after.nodes, number),
        ("parameters", before.parameters, after.parameters, number),
        ("weights", before.weight_bytes, after.weight_bytes, size),
    ]
    for label, a, b, text in numbers:
        rows.add_row(label, text(a), text(b), f"{b / a:.3f}" if a else "")
    for op in [*before.ops, *(op for op in after.ops if op not in before.ops)]:
        a, b = before.ops.get(op, 0), after.ops.get(op, 0)
        rows.add_row(f"  {clean(op)}", number(a), number(b), f"{b - a:+d}" if a != b else "")
    show(rows)
    for name, summary in zip(names, (before, after), strict=True):
        say(f"MACs of {name}: {_macs(summary, at)}")
    sides = [("inputs", before.inputs, after.inputs), ("outputs", before.outputs, after.outputs)]
    for kind, old, new in sides:
        if old != new:
            say(f"{kind} differ: {_interface(old)} against {_interface(new)}")


def _interface(values: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name}: {type}" for name, type in values)


def _macs(summary: Summary, at: dict[str, int]) -> str:
    from tersor.ir.dims import evaluate, symbols

    text = number(summary.macs)
    if symbols(summary.macs) and symbols(summary.macs) <= at.keys():
        where = " ".join(f"{k}={v}" for k, v in at.items())
        text += f" = {evaluate(summary.macs, at):,} at {where}"
    if summary.unknown_macs:
        ops = ", ".join(f"{count} {op}" for op, count in summary.unknown_macs.items())
        text += f", without those of {ops}, which are unknown"
    return clean(text)


def _show_weights(summary: Summary, top: int) -> None:
    if not summary.largest or not top:
        return
    say()
    rows = table("largest weights", ">shape", "stored as", ">size")
    for weight in summary.largest[:top]:
        shape = "x".join(map(str, weight.shape)) or "scalar"
        rows.add_row(clean(weight.name), shape, clean(weight.form), size(weight.bytes))
    show(rows)


def _show_scopes(scopes: list[Scope], depth: int) -> None:
    shown = [s for s in scopes if s.path.count(".") < depth]
    if not any(s.path for s in shown) or not depth:
        return
    say()
    rows = table("module", ">parameters", ">weights")
    for scope in shown:
        rows.add_row(clean(scope.path) or "(none)", number(scope.parameters), size(scope.bytes))
    show(rows)
