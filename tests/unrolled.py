"""Recurrent layers written out step by step, in the ways that exporters and people do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

HIDDEN, IN, STEPS, BATCH = 4, 3, 5, 2
Step = Callable[..., tuple[Tensor, Tensor]]


class Unrolled(nn.Module):
    """Weights that the layers below share the names of."""

    inputs: tuple[str, ...] = ("x", "h", "c")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        shapes = {"w": (IN, 4 * HIDDEN), "r": (HIDDEN, 4 * HIDDEN), "b": (4 * HIDDEN,)}
        shapes |= {
            "wn": (IN, HIDDEN),
            "rn": (HIDDEN, HIDDEN),
            "bn": (HIDDEN,),
            "first": (1, HIDDEN),
        }
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape) * 0.6))

    def arguments(self) -> tuple[Tensor, ...]:
        torch.manual_seed(4)
        made = {"x": (BATCH, STEPS, IN), "h": (BATCH, HIDDEN), "c": (BATCH, HIDDEN)}
        return tuple(torch.randn(made[name]) for name in self.inputs)

    def lstm(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Gates in torch's order: i, f, g, o."""
        i, f, g, o = (x @ self.w + h @ self.r + self.b).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Cells(Unrolled):
    """torch's own cells in a loop, from zero."""

    inputs = ("x",)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}[kind](IN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        c, made = h, []
        for t in range(STEPS):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x[:, t], (h, c))
            else:
                h = self.cell(x[:, t], h)
            made.append(h)
        return torch.stack(made, 1)


class Keras(Unrolled):
    """i, f, c, o; the product with the input done once for all steps, time first; gates sliced."""

    inputs = ("x",)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = x.transpose(0, 1) @ self.w + self.b
        h = x.new_zeros(x.shape[0], HIDDEN)
        c, made = h, []
        for t in range(STEPS):
            p = z[t] + h @ self.r
            i, f, g, o = (p[:, k * HIDDEN : (k + 1) * HIDDEN] for k in range(4))
            c = torch.sigmoid(i) * torch.tanh(g) + c * torch.sigmoid(f)
            h = torch.tanh(c) * torch.sigmoid(o)
            made.append(h)
        return torch.stack(made, 1), c


class PerGate(Unrolled):
    """One weight a gate, with biases of their own on both products."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        n = HIDDEN
        w, r, b = (m.chunk(4, -1) for m in (self.w, self.r, self.b))
        for t in range(STEPS):
            p = [(x[:, t] @ w[k] + b[k]) + (h @ r[k] + b[k]) for k in range(4)]
            c = c * torch.sigmoid(p[0]) + torch.tanh(p[1]) * torch.sigmoid(p[2])
            h = torch.sigmoid(p[3]) * torch.tanh(c)
        return h[:, :n]


class Concatenated(Unrolled):
    """TensorFlow's first cells: one product with input and state side by side, i, j, f + 1, o."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        w = torch.cat([self.w, self.r])
        for t in range(STEPS):
            i, j, f, o = (torch.cat([x[:, t], h], 1) @ w + self.b).chunk(4, 1)
            c = c * torch.sigmoid(f + 1.0) + torch.sigmoid(i) * torch.tanh(j)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h, c


class Backwards(Unrolled):
    """The last step first; one Sigmoid for three gates; every second state read as well."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = []
        for t in reversed(range(STEPS)):
            p = x[:, t] @ self.w + h @ self.r + self.b
            i, f, o = torch.sigmoid(p[:, : 3 * HIDDEN]).chunk(3, 1)
            c = f * c + i * torch.tanh(p[:, 3 * HIDDEN :])
            h = o * torch.tanh(c)
            made.append(h)
        return torch.stack(made[::-1], 1), h, torch.stack(made[::2])


class ResetBefore(Unrolled):
    """GRU that resets the state before its product; a first state that is learned."""

    inputs = ("x",)

    def forward(self, x: Tensor) -> Tensor:
        h, n = self.first.expand(x.shape[0], HIDDEN), 2 * HIDDEN
        for t in range(STEPS):
            at = x[:, t]
            z, r = torch.sigmoid(at @ self.w[:, :n] + h @ self.r[:, :n] + self.b[:n]).chunk(2, 1)
            new = torch.tanh(at @ self.wn + (r * h) @ self.rn + self.bn)
            h = z * h + (1 - z) * new
        return h


class OtherWay(Unrolled):
    """GRU whose update gate says how much is new; states side by side."""

    inputs = ("x", "h")

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        n, made = HIDDEN, []
        update, new = (
            torch.cat([self.rn, self.wn]),
            torch.cat([self.r[:, n : 2 * n], self.w[:, n : 2 * n]]),
        )
        for t in range(STEPS):
            at = x[:, t]
            z = torch.sigmoid(torch.cat([h, at], 1) @ update)
            r = torch.sigmoid(at @ self.w[:, :n] + h @ self.r[:, :n])
            h = (1 - z) * h + z * torch.tanh(torch.cat([r * h, at], 1) @ new + self.bn)
            made.append(h)
        return torch.cat(made, 1), made[2]


class TwoLayers(Unrolled):
    """Two layers, step by step in turn, of which the second reads both states as one."""

    inputs = ("x",)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        c, h2, c2, made = h, h, h, []
        both = torch.cat([self.r * 0.5, self.r * 0.7])
        for t in range(STEPS):
            h, c = self.lstm(x[:, t], h, c)
            i, f, g, o = (torch.cat([h, h2], 1) @ both).chunk(4, 1)
            c2 = f.sigmoid() * c2 + i.sigmoid() * g.tanh()
            h2 = o.sigmoid() * c2.tanh()
            made.append(h2)
        return torch.stack(made, 1)


class ReluLayers(Unrolled):
    """Two simple layers, one of which has no bias; the last state of the first is returned too."""

    inputs = ("x",)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = x.new_zeros(x.shape[0], HIDDEN)
        b, made = a, []
        for t in range(STEPS):
            a = torch.relu(x[:, t] @ self.wn + a @ self.rn + self.bn)
            b = torch.tanh(a @ self.r[:, :HIDDEN] + b @ self.r[:, HIDDEN : 2 * HIDDEN])
            made.append(b)
        return torch.stack(made), a


class Apart(Unrolled):
    """Inputs made one by one, fewer steps than there are, and a state that has another reader."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        made = []
        for t in range(3):
            h, c = self.lstm(x[:, t] * x[:, t + 1].exp().sum(1, keepdim=True), h, c)
            made.append(h)
        return torch.stack(made, 1), made[1] * 2


class CellInBetween(Unrolled):
    """The cell state of a step in the middle is read: two ops."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        kept = c
        for t in range(STEPS):
            h, c = self.lstm(x[:, t], h, c)
            kept = c if t == 1 else kept
        return kept * 2, h


class Fed(Unrolled):
    """Each step reads what was made of the state before it: no op can do that."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        y, made = x[:, 0], []
        for _ in range(STEPS):
            h, c = self.lstm(y, h, c)
            y = h @ self.rn[:, :IN]
            made.append(y)
        return torch.stack(made, 1)


class AllCells(Unrolled):
    """All cell states are returned, which no op does."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        made = []
        for t in range(STEPS):
            h, c = self.lstm(x[:, t], h, c)
            made.append(c)
        return torch.stack(made, 1)


class OtherWeights(Unrolled):
    """The weights change from step to step: no recurrence."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        for t in range(STEPS):
            i, f, g, o = (x[:, t] @ self.w + h @ (self.r * (1 + t)) + self.b).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h
