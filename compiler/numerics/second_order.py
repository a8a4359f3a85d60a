"""Second-order pruning of a layer's weights: what a weight costs, and how the others make up for it.

With X the layer's inputs as rows and H = X^T X, a change D of the weights W [outputs, inputs] costs

    |X (W + D)^T - X W^T|^2  =  trace(D H D^T)

**One at a time** (optimal brain surgeon, Hassibi and Stork 1993; Frantar and Alistarh 2022).  The least
cost at which weight j of a row w becomes zero, and the change of the row that has it:

    cost = w_j^2 / P_jj,    d = -(w_j / P_jj) P_j,:,    P = H^-1

after which input j is gone: P becomes that of the inputs that are left, P - P_:,j P_j,: / P_jj.

**In the order of the inputs** (SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774).  If every row
goes through the inputs in the same order, and input j is left alone once it is passed, whether its weight
was kept or not, then all rows share the inverses.  They are all in one factor: with P = U^T U, U upper
triangular, the row j of P that is left when the inputs before j are gone is U_jj U_j,: .  So

    cost = (w_j / U_jj)^2,    d = -(w_j / U_jj) U_j,:

and the costs of all steps add up to the whole, trace(D H D^T) = sum (w_j / U_jj)^2 over what went.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

COLUMNS = 128  # Inputs that are chosen among, and whose changes are passed on, together.


def damped(xtx: np.ndarray, damping: float) -> np.ndarray:
    """f64[k, k]: H with ``damping`` times the mean of its diagonal added to the diagonal; the identity
    where all inputs are zero."""
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
"""(costs [outputs, c], which c consecutive inputs) -> which weights stay, bool[outputs, c]"""


def prune_in_order(
    weight: np.ndarray, factor: np.ndarray, choose: Choose, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """SparseGPT.

    Args:
        weight: f64[outputs, inputs].
        factor: :func:`inverse_factor` of the damped H.
        choose: asked for every ``step`` inputs, when the changes of all inputs before are made.
        step: how many inputs are chosen among together.

    Returns:
        The weights, zero where they went, and the mask of what stayed.
    """
    left = weight.copy()
    kept = np.ones(weight.shape, bool)
    width = step * max(COLUMNS // step, 1)
    for start in range(0, weight.shape[1], width):
        block = slice(start, min(start + width, weight.shape[1]))
        upper = factor[block, block]
        held, stays = left[:, block], kept[:, block]  # views
        errors = np.zeros_like(held)
        for j in range(held.shape[1]):
            if j % step == 0:
                ahead = slice(j, j + step)
                costs = (held[:, ahead] / np.diagonal(upper)[ahead]) ** 2
                stays[:, ahead] = choose(costs, slice(start + j, start + j + step))
            errors[:, j] = np.where(stays[:, j], 0, held[:, j] / upper[j, j])
            held[:, j:] -= np.outer(errors[:, j], upper[j, j:])
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    left[~kept] = 0
    return left, kept


def removal_costs(weight: np.ndarray, inverse: np.ndarray, units: np.ndarray) -> np.ndarray:
    """What it costs, all outputs together, to remove a unit's inputs when the others make up for it.

        cost_u = trace(W_:,u (P_uu)^-1 W_:,u^T)

    Args:
        weight: f64[outputs, inputs].
        inverse: f64[inputs, inputs], P.
        units: i64[n, s], the s inputs of each of n units.
    """
    own = inverse[units[:, :, None], units[:, None, :]]
    columns = weight.T[units]
    return np.asarray((columns * np.linalg.solve(own, columns)).sum(axis=(1, 2)))


def remove_inputs(
    weight: np.ndarray, inverse: np.ndarray, gone: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(W, P) when the inputs ``gone`` are removed and the others make up for it; zero where they were.

    W - W_:,g (P_gg)^-1 P_g,:        P - P_:,g (P_gg)^-1 P_g,:
    """
    share = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone])
    left, rest = weight - weight[:, gone] @ share, inverse - inverse[:, gone] @ share
    left[:, gone] = 0
    rest[gone, :] = rest[:, gone] = 0
    return left, rest
