"""Second-order pruning of a layer's weights: what removing one costs, and how the others compensate.

With X the layer's inputs as rows and H = X^T X, a change D of the weights W [outputs, inputs] costs

    |X (W + D)^T - X W^T|^2  =  trace(D H D^T)

**One at a time** (optimal brain surgeon, Hassibi and Stork 1993; Frantar and Alistarh 2022).  The least
cost of making weight j of a row w zero, and the change of the row that has this cost:

    cost = w_j^2 / P_jj,    d = -(w_j / P_jj) P_j,:,    P = H^-1

Input j is then removed, and P becomes the inverse for the remaining inputs, P - P_:,j P_j,: / P_jj.

**In the order of the inputs** (SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774).  If every row
visits the inputs in the same order, and a weight is not changed after its input was visited, pruned or
not, then all rows share the same inverses, which are all in one factor: with P = U^T U, U upper
triangular, row j of the inverse without the inputs before j is U_jj U_j,: .  So

    cost = (w_j / U_jj)^2,    d = -(w_j / U_jj) U_j,:

and the costs add up to the total, trace(D H D^T) = sum of (w_j / U_jj)^2 over the pruned weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

COLUMNS = 128  # Inputs per block: the changes of a block are applied to later inputs at once.


def damped(xtx: np.ndarray, damping: float) -> np.ndarray:
    """f64[k, k]: H with ``damping`` times the mean of its diagonal added to the diagonal; the identity if
    all inputs are zero."""
    mean = float(np.diagonal(xtx).mean()) if xtx.size else 0.0
    if mean <= 0:
        return np.eye(len(xtx))
    return np.asarray(xtx + damping * mean * np.eye(len(xtx)))


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """U, upper triangular, with H^-1 = U^T U.

    J H J = L L^T by Cholesky, J reversing the order; then H = A A^T with A = J L J upper triangular, and
    U = A^-1.

    Raises:
        LinAlgError: H is not positive definite.
    """
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    return np.triu(np.linalg.inv(lower[::-1, ::-1]))


Choose = Callable[[np.ndarray, slice], np.ndarray]
"""(costs [outputs, c], the slice of c consecutive inputs) -> which weights to keep, bool[outputs, c]"""


def prune_in_order(
    weight: np.ndarray, factor: np.ndarray, choose: Choose, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """SparseGPT.

    Args:
        weight: f64[outputs, inputs].
        factor: :func:`inverse_factor` of the damped H.
        choose: called for every ``step`` inputs, after the changes due to all inputs before them.
        step: the number of inputs that are chosen among together.

    Returns:
        The weights, zero where pruned, and the mask of those kept.
    """
    left = weight.copy()
    kept = np.ones(weight.shape, bool)
    width = step * max(COLUMNS // step, 1)
    for start in range(0, weight.shape[1], width):
        block = slice(start, min(start + width, weight.shape[1]))
        upper = factor[block, block]
        view, keep = left[:, block], kept[:, block]
        errors = np.zeros_like(view)
        for j in range(view.shape[1]):
            if j % step == 0:
                ahead = slice(j, j + step)
                costs = (view[:, ahead] / np.diagonal(upper)[ahead]) ** 2
                keep[:, ahead] = choose(costs, slice(start + j, start + j + step))
            errors[:, j] = np.where(keep[:, j], 0, view[:, j] / upper[j, j])
            view[:, j:] -= np.outer(errors[:, j], upper[j, j:])
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    left[~kept] = 0
    return left, kept


def removal_costs(weight: np.ndarray, inverse: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The cost over all outputs of removing a unit's inputs when the others compensate.

        cost_u = trace(W_:,u (P_uu)^-1 W_:,u^T)

    Args:
        weight: f64[outputs, inputs].
        inverse: f64[inputs, inputs], P.
        units: i64[n, s], the s inputs of each of n units.
    """
    if units.shape[1] == 1:
        at = units[:, 0]
        return np.asarray(np.square(weight[:, at]).sum(axis=0) / inverse[at, at])
    own = inverse[units[:, :, None], units[:, None, :]]
    columns = weight.T[units]
    products = columns @ columns.transpose(0, 2, 1)  # One right side an input, not one an output.
    return np.asarray(np.trace(np.linalg.solve(own, products), axis1=1, axis2=2))


def remove_inputs(
    weight: np.ndarray, inverse: np.ndarray, gone: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(W, P) of the inputs that are left without ``gone``, in order, and compensate for them.

    With H in blocks of the inputs g that go and r that remain, the inverse of H_rr alone is the Schur
    complement of P_gg in P, and the change of W is that of the least cost with D_:,g = -W_:,g :

        P' = P_rr - P_rg (P_gg)^-1 P_gr        W' = W_:,r - W_:,g (P_gg)^-1 P_gr

    Schur complements compose, so removing all of g at once equals removing them one by one; it passes
    over P once, with |g| multiply-adds an element, in place of |g| times with one.
    """
    rest = np.delete(np.arange(len(inverse)), gone)
    across = inverse[np.ix_(gone, rest)]
    share = np.linalg.solve(inverse[np.ix_(gone, gone)], across)
    left = inverse[np.ix_(rest, rest)]
    left -= across.T @ share
    return weight[:, rest] - weight[:, gone] @ share, left
