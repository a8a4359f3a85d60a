"""MiniLM pruned without training, to 75% and 60% of its multiply-adds at 8x128: Tersor's ``prune``
against Torch-Pruning, TextPruner's criterion and onnxsim, all on the same 1,500 sentences, tested on 500
others in ONNX Runtime.

A peer is taken at its best: each of its candidates, computed from an eighth of the sentences and brought to
the budget by bisection of its ratio, is judged on another eighth; the one with the highest mean cosine is
computed again from all of them. ``--peers`` stops there. ``--curve`` adds, for these results and for Tersor
from 90% to 60%, the speed over fp32 at 8x128, by the protocol of minilm.py (a process per system, interleaved
rounds), and how far the speedups of pruning and of int8 multiply when combined.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import minilm
import numpy as np
import onnx
import onnxruntime
import rows
import torch
from peers import (
    pruning_bert,
    pruning_onnxsim,
    pruning_share,
    pruning_textpruner,
    pruning_torch,
)
from rows import Json

import tersor
from tersor.models.minilm import build, data, metrics
from tersor.pipeline import registry
from tersor.tuning.measure import Bench

SHARES = (0.75, 0.6)
PART = 8  # Candidates are computed from one in PART batches, and judged on as many others.
CURVE = (0.9, 0.75, 0.6)
STACKED = 0.75
PEERS = {
    "onnxsim": pruning_onnxsim,
    "torch-pruning": pruning_torch,
    "textpruner": pruning_textpruner,
}
PACKAGES = tuple(name for peer in PEERS.values() for name in peer.PACKAGES)
SCRIPTS = [Path(module.__file__ or "") for module in (pruning_bert, pruning_share, *PEERS.values())]
OURS, BASE = "tersor", "ort-fp32"
SIZES = tuple(pruning_share.SIZES.values())


# -- systems ---------------------------------------------------------------------------------------


def ours(original: Path, share: float, folder: Path) -> Path:
    """Tersor's model with ``share`` of the multiply-adds, in standard ops, so that its work can be counted;
    ONNX Runtime fuses them when it loads the model."""
    path = folder / f"{OURS}-{share}.onnx"
    if not path.exists():
        artifact = tersor.compile(
            original,
            recipe="prune",
            calibration=data.much_calibration(),
            settings={"macs": share, "floor": 0},
            measure=False,
            portable=True,
            progress=rows.progress(f"pruning: {OURS} at {share}:"),
        )
        artifact.save(path)
    return path


class Contest:
    """A peer's candidates; scores of a candidate are computed once for all budgets."""

    def __init__(self, peer: ModuleType, original: Path) -> None:
        self.peer = peer
        on_onnx = hasattr(peer, "opened")
        self.model: Any = peer.opened(original) if on_onnx else build.build()
        self._scored: dict[str, Any] = {}

    def best(self, share: float, name: str) -> tuple[Any, Json]:
        """The best model with ``share`` of the multiply-adds, and the scores of all candidates."""
        everything = data.much_calibration()
        fitted, judged = everything[::PART], everything[PART // 2 :: PART]
        reference = _embeddings(self.model, judged)
        judgements: list[Json] = []
        for candidate in self.peer.CANDIDATES:
            options = dict(candidate)
            try:
                pruned = self._pruned("part", fitted, share, candidate)
            except ValueError as error:
                judgements.append({**options, "refused": str(error)})
                continue
            cosine = metrics.fidelity(reference, _embeddings(pruned, judged))["mean_cosine"]
            judgements.append({**options, "cosine": round(cosine, 5)})
            print(f"pruning: {name} at {share}: {judgements[-1]}", flush=True)
        best = max(range(len(judgements)), key=lambda i: judgements[i].get("cosine", -1.0))
        chosen = self.peer.CANDIDATES[best]
        model = self._pruned("all", everything, share, chosen)
        return model, {"chosen": dict(chosen), "candidates": judgements, "note": self.peer.NOTE}

    def _pruned(self, which: str, feeds: Sequence[data.Feed], share: float, candidate: Json) -> Any:
        key = f"{which} {candidate.get('importance')}"
        if key not in self._scored:
            self._scored[key] = self.peer.scores(self.model, feeds, candidate)
        return self.peer.prune(self.model, self._scored[key], share, candidate)


def _embeddings(model: Any, feeds: Sequence[data.Feed]) -> np.ndarray:
    """Embeddings by a torch module, or by a model in ONNX Runtime."""
    if isinstance(model, torch.nn.Module):
        return metrics.embed(lambda feed: build.run(model, feed), feeds)
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content)
    return metrics.embed(
        lambda feed: {build.OUTPUT: session.run([build.OUTPUT], dict(feed))[0]}, feeds
    )


def _written(model: Any, path: Path) -> Path:
    if isinstance(model, torch.nn.Module):
        return build.export_onnx(path, model)
    onnx.save(model, path)
    return path


# -- rows ------------------------------------------------------------------------------------------


class Yardstick:
    """The reference that models are compared with: the original's embeddings of sentences and rated words."""

    def __init__(self, original: Path) -> None:
        words, self._positive = metrics.valence_words()
        self._feeds = data.test_feeds(), data.batches(words, 64)
        self._reference, on_words = (_embeddings(original, feeds) for feeds in self._feeds)
        self._head = metrics.valence_head(on_words, self._positive)
        self._macs = pruning_share.macs(original)

    def row(self, path: Path) -> Json:
        """Sizes and fidelity."""
        sentences, words = (_embeddings(path, feeds) for feeds in self._feeds)
        macs = pruning_share.macs(path)
        return {
            "parameters": tersor.inspect(path).parameters,
            "macs": macs,
            "macs_share": round(macs / self._macs, 4),
            "mib": round(path.stat().st_size / 2**20, 2),
            **metrics.fidelity(self._reference, sentences),
            "valence_accuracy": metrics.valence_accuracy(self._head, words, self._positive),
        }


@cache
def yardstick(original: Path) -> Yardstick:
    """Computed once, when the first row needs it."""
    return Yardstick(original)


def measure_peers(original: Path, folder: Path, results: Json, out: Path) -> None:
    """Adds missing rows of the peers."""
    stored = results["peers"]["rows"]
    for name, peer in PEERS.items():
        missing = [
            s for s in SHARES if f"{name} {s}" not in stored or not _at(folder, name, s).exists()
        ]
        contest = Contest(peer, original) if missing else None
        for share in missing:
            assert contest is not None
            model, choice = contest.best(share, name)
            row = yardstick(original).row(_written(model, _at(folder, name, share)))
            stored[f"{name} {share}"] = {**row, **choice}
            print(f"pruning: {name} at {share}: {row}", flush=True)
            rows.save(out, results)


def measure_ours(original: Path, folder: Path, results: Json, out: Path) -> None:
    """Adds missing rows of Tersor, and how they compare with the best of the peers."""
    stored = results.setdefault(OURS, {})
    for share in SHARES:
        if f"{OURS} {share}" not in stored:
            row = yardstick(original).row(ours(original, share, folder))
            losses = [
                1 - results["peers"]["rows"][f"{name} {share}"]["mean_cosine"] for name in PEERS
            ]
            loss = (1 - row["mean_cosine"]) / min(losses)
            stored[f"{OURS} {share}"] = {**row, "loss_over_best_peer": round(loss, 3)}
            print(f"pruning: {OURS} at {share}: {stored[f'{OURS} {share}']}", flush=True)
            rows.save(out, results)


def measure_curve(
    original: Path, peers: Path, folder: Path, count: int, results: Json, out: Path
) -> None:
    """Speed at 8x128 against fidelity, of Tersor at all shares and of the peers at theirs."""
    models = {f"{name} {s}": _at(peers, name, s) for name in PEERS for s in SHARES}
    models |= {f"{OURS} {s}": ours(original, s, folder) for s in CURVE}
    choice = registry.backend("ort").Choice().to_json()
    with Bench([data.full(*SIZES)]) as bench:
        everything = {BASE: original, **models}
        workers = {n: bench.start("ort", path, choice) for n, path in everything.items()}
        times = minilm.rounds(workers, 0, count)
    base = np.array(times[BASE])
    results["curve"] = {"rounds": count, "points": {}}
    for name, path in models.items():
        own = np.array(times[name])
        speed = {"ms": rows.quartiles(own), "speedup": rows.quartiles(base / own)}
        row = yardstick(original).row(path)
        results["curve"]["points"][name] = {**row, **speed}
        print(f"pruning: {name}: {speed['speedup']}, {row['mean_cosine']:.4f}", flush=True)
    rows.save(out, results)


def measure_stacked(original: Path, folder: Path, count: int, results: Json, out: Path) -> None:
    """Speed at 8x128 of pruning, of int8 and of both, over fp32 of the same runtime; and the
    third relative to the product of the first two."""
    pruned = ours(original, STACKED, folder)
    results["stacked"] = {"rounds": count, "share": STACKED}
    for runtime in ("ort", "tvm"):
        artifacts = {
            f"{source} {recipe}": tersor.compile(
                path, runtime=runtime, recipe=recipe, calibration=data.calibration(), measure=False
            )
            for source, path in (("whole", original), ("pruned", pruned))
            for recipe in ("fp32", "int8")
        }
        with Bench([data.full(*SIZES)]) as bench:
            workers = {n: bench.start(a.runtime, a.model, a.choice) for n, a in artifacts.items()}
            times = {n: np.array(t) for n, t in minilm.rounds(workers, 0, count).items()}
        speeds = {n: times["whole fp32"] / own for n, own in times.items()}
        product = speeds["pruned int8"] / (speeds["pruned fp32"] * speeds["whole int8"])
        results["stacked"][runtime] = {
            "ms": {n: rows.quartiles(own) for n, own in times.items()},
            "speedup": {n: rows.quartiles(own) for n, own in speeds.items()},
            "over_product": rows.quartiles(product),
        }
        print(
            f"pruning: {runtime}: both over the product {results['stacked'][runtime]}", flush=True
        )
    rows.save(out, results)


def _at(folder: Path, name: str, share: float) -> Path:
    return folder / f"{name}-{share}.onnx"


def main() -> int:
    """Measures what is missing and writes JSON."""
    since = time.monotonic()
    parser = rows.parser(__doc__, "pruning.json")
    parser.add_argument("--peers", action="store_true", help="the peers only")
    parser.add_argument("--curve", action="store_true", help="speed too; needs an idle machine")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    out: Path = arguments.out
    options = {"shares": SHARES, "curve": CURVE, "rounds": arguments.rounds}
    wanted = rows.conditions([*SCRIPTS, Path(__file__)], options, PACKAGES)
    protocol = {"shares": SHARES, "part": PART}
    of_peers = rows.conditions(SCRIPTS, protocol, PACKAGES, ("models/minilm",))
    peers = _kept_peers(out, of_peers, arguments.fresh)
    results = rows.load(out, wanted, arguments.fresh)
    results["peers"] = peers
    at = rows.folder_of("pruned-peers", of_peers)
    original = at / f"{BASE}.onnx"
    if not original.exists():
        build.export_onnx(original)
    results[BASE] = yardstick(original).row(original)
    measure_peers(original, at, results, out)
    if arguments.peers:
        return 0
    folder = rows.folder_of("pruned-ours", wanted)
    measure_ours(original, folder, results, out)
    if arguments.curve:
        measure_curve(original, at, folder, arguments.rounds, results, out)
        measure_stacked(original, folder, arguments.rounds, results, out)
    rows.finish(out, results, since)
    return 0


def _kept_peers(path: Path, wanted: Json, fresh: bool) -> Json:
    """The rows of the peers, which stay valid when Tersor's passes change."""
    stored: Json = json.loads(path.read_text()).get("peers", {}) if path.exists() else {}
    same = stored.get("conditions") == json.loads(json.dumps(wanted))
    return stored if same and not fresh else {"conditions": wanted, "rows": {}}


if __name__ == "__main__":
    sys.exit(main())
