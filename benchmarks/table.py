"""Renders benchmark results into README.md and benchmarks/README.md, between their markers."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from rows import LEVELS, RESULTS, ROOT, best_level

NAMES = {
    "ort-fp32": "ONNX Runtime, fp32",
    "ort-quantize-dynamic": "ONNX Runtime, `quantize_dynamic` per channel",
    "torch-fp32": "torch, fp32, {mode}",
    "openvino-nncf-int8": "OpenVINO and NNCF, int8",
    "tersor-ort-fp32": "**Tersor `fp32`**, in ONNX Runtime",
    "tersor-ort-int8-calibrated": "**Tersor `int8`**, calibrated, in ONNX Runtime",
    "tersor-tvm-fp32": "**Tersor `fp32`**, by TVM",
    "tersor-tvm-int8": "**Tersor `int8`**, no calibration, by TVM",
    "tersor-tvm-int8-calibrated": "**Tersor `int8`**, calibrated, by TVM",
    "tersor-tvm-fp32-avx2": "**Tersor `fp32`**, by TVM for `cpu:avx2`",
    "tersor-tvm-int8-calibrated-avx2": "**Tersor `int8`**, calibrated, by TVM for `cpu:avx2`",
}
BASE, RIVAL = "ort-fp32", "openvino-nncf-int8"


def minilm(result: dict[str, Any]) -> str:
    """Speed over ONNX Runtime's fp32 and over OpenVINO's int8, fidelity and size."""
    shapes = sorted(result["speed"], key=lambda s: [int(size) for size in s.split("x")])
    head = ["", *shapes, "mean cosine", "worst", "nn1", "valence", "MiB"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, label in NAMES.items():
        if name not in result["fidelity"]:
            continue
        f, choice = result["fidelity"][name], result["choices"][name]["choice"]
        cells = [_speed(name, result["speed"][s][name]) for s in shapes]
        accuracy = [f"{f[k]:.4f}" for k in ("mean_cosine", "min_cosine")]
        more = [f"{f['nn1']:.3f}", f"{f['valence_accuracy']:.3f}", f"{result['sizes'][name]:.1f}"]
        label = label.format(mode=choice.get("mode", ""))
        lines.append(_row([label, *cells, *accuracy, *more]))
    hint = result["choices"][RIVAL]["choice"].get("INFERENCE_PRECISION_HINT", "its default")
    legend = (
        f"{_machine(result)}. A shape's cells: milliseconds for the first row; for the others speed over "
        f"that row / over OpenVINO's int8, medians over {result['rounds']} interleaved rounds of "
        "all systems. OpenVINO runs for latency, its inference precision "
        f"{hint}. Calibrated: on 64 sentences, the same for OpenVINO and Tersor. "
        "MiB: all required files."
    )
    return "\n".join([*lines, "", legend])


SHAPE = "8x128"  # The shape in the README.


def systems(results: list[dict[str, Any]]) -> str:
    """A row per system: its speed at SHAPE on each processor, fidelity on the last one, size."""
    levels = [best_level(r["conditions"]["machine"]["features"]) for r in results]
    head = ["", *(f"speed, {level}" for level in levels), "mean cosine", "nn1", "MiB"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, label in NAMES.items():
        of_name = [r for r in results if name in r["fidelity"]]
        if not of_name:
            continue
        last = of_name[-1]
        f, choice = last["fidelity"][name], last["choices"][name]["choice"]
        speeds = [_over_base(r, name) if r in of_name else "" for r in results]
        more = [f"{f['mean_cosine']:.4f}", f"{f['nn1']:.3f}", f"{last['sizes'][name]:.1f}"]
        lines.append(_row([label.format(mode=choice.get("mode", "")), *speeds, *more]))
    machines = "; ".join(
        f"{level}: {r['conditions']['machine']['cpu']}"
        for level, r in zip(levels, results, strict=True)
    )
    legend = (
        f"{machines}. Speed over ONNX Runtime's fp32 on the same processor, medians of interleaved rounds. "
        "Cosine with the fp32 embeddings and share of sentences whose nearest neighbour stays (nn1), on 500 "
        f"sentences not used for calibration, on {levels[-1]}."
    )
    return "\n".join([*lines, "", legend])


def _over_base(result: dict[str, Any], name: str) -> str:
    cell = result["speed"][SHAPE][name]
    return f"{cell['ms']['median']:.0f} ms" if name == BASE else f"{_median(cell, BASE):.2f}x"


def _median(cell: dict[str, Any], peer: str) -> float:
    return float(cell["over"][peer]["median"])


def headline(results: list[dict[str, Any]]) -> str:
    """The README's first figures, from the same results as its table."""
    best, weakest = results[0], results[-1]
    ours = "tersor-tvm-int8-calibrated"
    sentences = [
        f"On {_processor(r)}, int8 MiniLM built with Tersor's own kernels runs "
        f"{_median(r['speed'][SHAPE][ours], BASE):.1f} times as fast as ONNX Runtime's fp32 at {SHAPE}, "
        f"{_median(r['speed'][SHAPE][ours], RIVAL):.1f} times as fast as OpenVINO's int8, and closer to the "
        f"original (cosine {r['fidelity'][ours]['mean_cosine']:.4f} against "
        f"{r['fidelity'][RIVAL]['mean_cosine']:.4f})."
        for r in ([best] if best is weakest else [best, weakest])
    ]
    narrow = [
        f"{_range(weakest, name)} in {label}"
        for name, label in NARROW.items()
        if name in weakest["fidelity"]
    ]
    if narrow:
        sentences.append(
            "Libraries for AVX2 alone, which any x86 processor of the last ten years runs, are faster than "
            f"ONNX Runtime's fp32 on the latter: {', '.join(narrow)}."
        )
    return textwrap.fill(" ".join(sentences), 110)


NARROW = {"tersor-tvm-fp32-avx2": "fp32", "tersor-tvm-int8-calibrated-avx2": "int8"}


def _range(result: dict[str, Any], name: str) -> str:
    """``2.3 to 2.5 times``, over all shapes."""
    speeds = [_median(cells[name], BASE) for cells in result["speed"].values()]
    return f"{min(speeds):.1f} to {max(speeds):.1f} times"


def _processor(result: dict[str, Any]) -> str:
    machine = result["conditions"]["machine"]
    return f"{machine['cores']} cores of {machine['cpu']} ({best_level(machine['features'])})"


def _machine(result: dict[str, Any]) -> str:
    """``Intel(R) Xeon(R) Processor, best int8 instructions: amx_int8, 2 threads``."""
    machine = result["conditions"]["machine"]
    best = best_level(machine["features"])
    return f"{machine['cpu']}, best int8 instructions {best}, {machine['cores']} threads"


def kernels(result: dict[str, Any]) -> str:
    """The peaks; each kernel by ISA level: microseconds, and its share of the peak."""
    lines = [_row(["peak", "instruction", "threads", "best"]), _row(["---"] * 4)]
    for p in result["peaks"]:
        best = f"{p['best']:,.0f} {p['unit']}" if p["best"] >= 100 else f"{p['best']} {p['unit']}"
        lines.append(_row([p["peak"], p["instruction"], str(p["threads"]), best]))
    levels = list(dict.fromkeys(k["level"] for k in result["kernels"]))
    cells = {(k["group"], k["kernel"], k["level"]): _kernel_cell(k) for k in result["kernels"]}
    lines += ["", _row(["kernel", *levels]), _row(["---"] * (len(levels) + 1))]
    for group, kernel in sorted({(g, k): None for g, k, _ in cells}, key=lambda i: i[0]):
        label = f"{kernel} ({group})" if group == "bare" else kernel
        lines.append(_row([label, *(cells.get((group, kernel, level), "") for level in levels)]))
    legend = (
        f"{_machine(result)}; {result['rows']:,} rows. Kernels: median microseconds, operations (or "
        "bytes) per second, and their share of the peak of the instruction that they use, measured in "
        "the same run on as many threads. Float kernels are listed once for each vector width; on "
        "AMX, q, k and v are written in bfloat16 for attention."
    )
    return "\n".join([*lines, "", legend])


def _kernel_cell(kernel: dict[str, Any]) -> str:
    us, rate, unit = kernel["us"]["median"], kernel["rate"], kernel["unit"]
    share = "" if kernel["share"] is None else f", {kernel['share']:.0%}"
    return f"{us:,.0f} µs, {rate:,.0f} {unit}{share}"


def tvm_profile(result: dict[str, Any]) -> str:
    """Milliseconds by kernel at 8x128, for each level that the library was built for."""
    parts = []
    for level, profiled in result["levels"].items():
        lines = [_row(["ms at 8x128", "calls", level, "GOP/s", "share of the peak"])]
        lines.append(_row(["---"] * 5))
        for k in profiled["kernels"]:
            if k["ms"] >= 0.1:
                rate = [f"{k['rate']:,.0f}", f"{k['share']:.0%}"] if "rate" in k else ["", ""]
                lines.append(_row([f"`{k['kernel']}`", str(k["calls"]), f"{k['ms']:.2f}", *rate]))
        whole = [f"**{profiled['rate']:,.0f}**", f"**{profiled['share']:.0%}**"]
        lines.append(_row(["**all**", "", f"**{profiled['ms']['median']:.1f}**", *whole]))
        parts.append("\n".join(lines))
    legend = (
        f"{_machine(result)}; {result['gop']} GOP per run. Kernels are timed by TVM's own instrument, the "
        "whole without it; shares are of the int8 peak of the level, measured in the same run."
    )
    return "\n\n".join([*parts, legend])


def profile(result: dict[str, Any]) -> str:
    """Milliseconds by kind of op, before and after."""
    columns = list(result["systems"])
    kinds = sorted(
        {k for c in columns for k in result["systems"][c]["ops"]},
        key=lambda k: -max(result["systems"][c]["ops"].get(k, 0.0) for c in columns),
    )
    lines = [_row(["ms at 8x128", *columns]), _row(["---"] * (len(columns) + 1))]
    for kind in kinds:
        times = [result["systems"][c]["ops"].get(kind) for c in columns]
        if max(t or 0.0 for t in times) >= 0.3:
            lines.append(_row([kind, *("" if t is None else f"{t:.1f}" for t in times)]))
    totals = [f"**{sum(result['systems'][c]['ops'].values()):.1f}**" for c in columns]
    lines.append(_row(["**all**", *totals]))
    return "\n".join(lines)


def pruning(result: dict[str, Any]) -> str:
    """Fidelity of Tersor and its peers at the same multiply-adds; speed if measured."""
    points = result.get("curve", {}).get("points", {})
    by_name = {**result["peers"]["rows"], **result["tersor"], **points}
    head = ["", "multiply-adds", "parameters", "mean cosine", "worst", "nn1", "speed at 8x128"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, row in sorted(by_name.items(), key=lambda item: (-item[1]["macs_share"], item[0])):
        system, share = name.rsplit(" ", 1)
        speed = points.get(name, {}).get("speedup")
        quality = [f"{row[k]:.4f}" for k in ("mean_cosine", "min_cosine")]
        label = PRUNERS[system]
        cells = [f"{row['macs_share']:.1%}", f"{row['parameters'] / 1e6:.1f} M", *quality]
        speedup = "" if speed is None else f"{speed['median']:.2f}x"
        lines.append(_row([f"{label} at {float(share):.0%}", *cells, f"{row['nn1']:.3f}", speedup]))
    legend = (
        f"{_machine(result)}. Pruned without training on 1,500 sentences, tested on 500 others; "
        "speed over ONNX Runtime's fp32, medians of interleaved rounds. Peers at their best of several "
        "settings, chosen on calibration sentences."
    )
    return "\n".join([*lines, "", legend, *_stacked(result)])


PRUNERS = {
    "tersor": "**Tersor `prune`**",
    "onnxsim": "onnxsim",
    "torch-pruning": "Torch-Pruning",
    "textpruner": "TextPruner's criterion",
}


def _stacked(result: dict[str, Any]) -> list[str]:
    """The speed of pruning and int8 together, a line per runtime."""
    stacked = result.get("stacked", {})
    lines = []
    for runtime, label in (("ort", "ONNX Runtime"), ("tvm", "TVM")):
        if runtime in stacked:
            speed = {n: s["median"] for n, s in stacked[runtime]["speedup"].items()}
            lines += [
                "",
                f"In {label}, over its own fp32 at 8x128: pruned to {stacked['share']:.0%} "
                f"{speed['pruned fp32']:.2f}x, int8 {speed['whole int8']:.2f}x, both "
                f"**{speed['pruned int8']:.2f}x**, {stacked[runtime]['over_product']['median']:.2f} times "
                "the product.",
            ]
    return lines


def break_even(result: dict[str, Any]) -> str:
    """The largest rank that pays, by layer, precision and rows, and the limit by operation count."""
    layers: dict[str, Any] = result["layers"]
    first = next(iter(layers.values()))
    head = ["layer", *(f"{row['rows']} rows" for row in first), "by count"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, rows in layers.items():
        ranks = ["none" if r["break_even"] is None else str(r["break_even"]) for r in rows]
        lines.append(_row([name, *ranks, f"{rows[0]['limit_by_count']:.0f}"]))
    return "\n".join([*lines, "", f"{_machine(result)}, ONNX Runtime."])


def lowrank(result: dict[str, Any]) -> str:
    """Mean cosine by rank and method."""
    stored = result["ranks"].values()
    methods = list(dict.fromkeys(r["method"] for r in stored))
    ranks = sorted({r["rank"] for r in stored})
    cells = {(r["method"], r["rank"]): f"{r['mean_cosine']:.4f}" for r in stored}
    lines = [_row(["mean cosine at rank", *map(str, ranks)]), _row(["---"] * (len(ranks) + 1))]
    lines += [_row([m, *(cells.get((m, r), "") for r in ranks)]) for m in methods]
    return "\n".join(lines)


def calibration_memory(result: dict[str, Any]) -> str:
    """Peak MiB by recipe and number of sentences."""
    peaks: dict[str, dict[str, int]] = result["mib"]
    counts = sorted({int(count) for row in peaks.values() for count in row})
    head = ["peak MiB", *(f"{count:,} sentences" for count in counts)]
    lines = [_row(head), _row(["---"] * len(head))]
    for recipe, row in sorted(peaks.items()):
        lines.append(
            _row([f"`{recipe}`", *(f"{row[str(c)]:,}" if str(c) in row else "" for c in counts)])
        )
    legend = (
        f"{_machine(result)}. Resident memory of a process that compiles MiniLM for ONNX Runtime without "
        "measuring; sentences of 30 to 300 characters, 8 in a batch."
    )
    return "\n".join([*lines, "", legend])


SDPA = "sdpa, dynamo"


def exporters(result: dict[str, Any]) -> str:
    """Each form of MiniLM: its mask, lines that differ, and times by recipe, level and shape."""
    shapes = list(next(iter(next(iter(result["speed"].values())).values()))["times"])
    columns = [(case, shape) for case in result["speed"] for shape in shapes]
    head = ["", "mask", "lines that differ", *(f"{case} {shape}" for case, shape in columns)]
    lines = [_row([*head, "mean cosine, int8"]), _row(["---"] * (len(head) + 1))]
    # JSON's keys are sorted; the others are compared with this one.
    for name, graph in sorted(result["graphs"].items(), key=lambda item: item[0] != SDPA):
        times = [result["speed"][case][name]["times"][shape] for case, shape in columns]
        cells = [f"{t['ms']:.1f} ms ({t['over_first']:.2f})" for t in times]
        cosine = result["speed"]["int8 cpu"][name]["fidelity"]["mean_cosine"]
        form = [name, f"`{graph['mask']}`", str(graph["lines_that_differ"])]
        lines.append(_row([*form, *cells, f"{cosine:.4f}"]))
    legend = (
        f"{_machine(result)}, TVM. Lines of the graph after fusion that differ from the first form's, except "
        "those that compute the mask. Shortest of interleaved rounds, and its ratio to the first form's."
    )
    return "\n".join([*lines, "", legend])


def zoo(result: dict[str, Any]) -> str:
    """Each workload with each recipe: speed over its own ONNX file, size, fidelity and metric."""
    head = ["workload", "recipe", "kept", "speed over the input", "KiB", "mean cosine", "metric"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, workload in sorted(result["workloads"].items()):
        for recipe, row in sorted(workload["recipes"].items()):
            sizes = f"{workload['bytes_input'] / 1024:.0f} → {row['bytes'] / 1024:.0f}"
            cosine = row["fidelity"].get("mean_cosine")
            lines.append(
                _row(
                    [
                        name,
                        f"`{recipe}`",
                        row["kept"],
                        ", ".join(map(_at_size, row["speed"])) or "the input itself",
                        sizes,
                        "" if cosine is None else f"{cosine:.4f}",
                        _metrics(workload["metric_input"], row["metric"]),
                    ]
                )
            )
    return "\n".join(lines)


def _at_size(row: dict[str, Any]) -> str:
    """``8x128 1.31x (1.29–1.33)``: the median and the quartiles."""
    size = "x".join(item.partition("=")[2] for item in row["sizes"].split())
    return f"{size} {row['speedup']:.2f}x ({row['speedup_q1']:.2f}–{row['speedup_q3']:.2f})"


def _metrics(before: dict[str, float], after: dict[str, float]) -> str:
    return ", ".join(f"{k} {before[k]:.3f} → {v:.3f}" for k, v in sorted(after.items()))


def _speed(name: str, cell: dict[str, Any]) -> str:
    if name == BASE:
        return f"{cell['ms']['median']:.1f} ms"
    base, rival = (cell["over"][peer]["median"] for peer in (BASE, RIVAL))
    return f"{base:.2f}x" if name == RIVAL else f"{base:.2f}x / {rival:.2f}x"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


TABLES = {
    "pruning": pruning,
    "break_even": break_even,
    "lowrank": lowrank,
    "minilm": minilm,
    "profile": profile,
    "tvm_profile": tvm_profile,
    "kernels": kernels,
    "exporters": exporters,
    "zoo": zoo,
    "calibration_memory": calibration_memory,
}


WEAKEST = "_weakest"  # Suffix of the markers of tables for the weakest processor.


OVERVIEWS = {"headline": headline, "systems": systems}  # Over MiniLM's results on all processors.
PAGES = ("README.md", "benchmarks/README.md")


def main() -> int:
    """Updates the pages with the available results: of the best processor and, where markers exist, of the
    weakest."""
    tables: dict[str, str] = {}
    for name, render in TABLES.items():
        results = measured(name)
        if not results:
            print(f"{name}.json is missing or of an older format: its table is not updated")
            continue
        tables[name] = render(results[0])
        if len(results) > 1:
            tables[name + WEAKEST] = render(results[-1])
    if results := measured("minilm"):
        tables |= {name: render(results) for name, render in OVERVIEWS.items()}
    for page in (ROOT / name for name in PAGES):
        text = page.read_text()
        for name, table in tables.items():
            text = _put(text, name, table)
        page.write_text(text)
    return 0


def measured(name: str) -> list[dict[str, Any]]:
    """Results of a benchmark on each level of processors, the best first."""
    files = [RESULTS / level / f"{name}.json" for level in LEVELS]
    stored = [json.loads(file.read_text()) for file in files if file.exists()]
    return [result for result in stored if "conditions" in result]


def _put(text: str, name: str, table: str) -> str:
    """The text with a table between its markers, if it has them."""
    begin, end = f"<!-- {name}: generated -->\n", f"<!-- /{name} -->"
    if begin not in text:
        return text
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}{table}\n{end}{tail}"


if __name__ == "__main__":
    sys.exit(main())
