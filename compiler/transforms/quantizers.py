"""Quantizers of activations: which form they give."""

from __future__ import annotations

import numpy as np

from tersor.numerics.affine import ActivationForm, Granularity, quantize_weight
from tersor.pipeline import Context

_INT8 = quantize_weight(np.zeros((1, 1), np.float32), 1)  # A weight as quantize-dynamic makes it.


def activation_form(granularity: Granularity, context: Context) -> ActivationForm:
    """The integers that int8 linear layers read. ``auto``: rows with a scale each, the more faithful form,
    where the backend multiplies such in integers."""
    rows = ActivationForm.INT8_ROWS
    if granularity == "auto":
        refused = context.supports("tersor.Linear", [_INT8], rows)
        return ActivationForm.INT8 if refused else rows
    return rows if granularity == "token" else ActivationForm.INT8
