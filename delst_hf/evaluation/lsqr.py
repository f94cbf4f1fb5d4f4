"""LSQR for many right-hand sides at once: scipy's algorithm, with each step taken for all columns together.

Source: Paige and Saunders, "LSQR: an algorithm for sparse linear equations and sparse least squares", ACM TOMS 8 (1982) 43-71.
HEST-Benchmark fits its ridge by this method, which stops early; a closed form would give other numbers in the third digit. One
fit per gene, as scikit-learn does it, takes a hundred times as long.
"""

import numpy as np

MAX_CONDITION = 1e8  # estimated condition number at which scipy stops
_EPSILON = np.finfo(np.float64).eps


def lsqr_ridge(
    inputs: np.ndarray, targets: np.ndarray, alphas: np.ndarray, tolerance: float = 1e-4, max_steps: int = 1000
) -> np.ndarray:
    """Minimise |inputs w - target|^2 + alpha |w|^2 for every target and penalty, as `Ridge(solver="lsqr")` without intercept.

    Args:
        inputs: (rows, columns).
        targets: (rows, targets).
        alphas: (penalties,), each for all targets.
        tolerance: Relative tolerance of the residual and of its gradient at which a target stops.
        max_steps: Maximum number of steps.

    Returns:
        Coefficients (penalties, columns, targets), float64.

    Examples:
        >>> lsqr_ridge(np.eye(2), np.array([[2.0], [4.0]]), np.array([1.0]), 1e-10).round(6).tolist()
        [[[1.0], [2.0]]]
    """
    inputs, penalties = np.asarray(inputs), len(alphas)
    basis = _Bidiagonal(inputs, np.asarray(targets, dtype=inputs.dtype))
    state = _Rotations(basis, np.sqrt(np.repeat(np.asarray(alphas, dtype=np.float64), targets.shape[1])), penalties)
    result = np.zeros((inputs.shape[1], penalties * targets.shape[1]))
    # The columns of the result that still run, and for each its target's column in the basis.
    running, target = np.arange(result.shape[1]), np.tile(np.arange(targets.shape[1]), penalties)
    stop = np.tile(basis.alpha * basis.beta == 0, penalties)
    for _ in range(max_steps + 1):
        if stop.any():
            result[:, running[stop]] = state.solution[:, stop]
            running, target = running[~stop], target[~stop]
            state.keep(~stop)
            kept, target = np.unique(target, return_inverse=True)
            if len(kept) < basis.v.shape[1]:
                basis.keep(kept)
        if not len(running):
            break
        basis.step()
        state.step(basis, target)
        stop = state.converged(tolerance)
    result[:, running] = state.solution
    return result.reshape(len(result), penalties, -1).transpose(1, 0, 2)


class _State:
    """Running quantities, with one column (or number) per problem that has not converged."""

    def keep(self, columns: np.ndarray) -> None:
        """Keep these columns only."""
        for name, value in vars(self).items():
            if name != "inputs":
                setattr(self, name, value[..., columns])


class _Bidiagonal(_State):
    """Golub and Kahan's bidiagonalisation of each target, for all penalties; names as in scipy.sparse.linalg.lsqr."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray):
        self.inputs = inputs
        self.beta = np.linalg.norm(targets, axis=0).astype(np.float64)
        self.u = targets / np.where(self.beta > 0, self.beta, 1.0).astype(inputs.dtype)
        v = inputs.T @ self.u
        self.alpha = np.linalg.norm(v, axis=0).astype(np.float64)
        self.v = v / np.where(self.alpha > 0, self.alpha, 1.0).astype(inputs.dtype)
        self.before = self.alpha

    def step(self) -> None:
        """Take one step; `before` is the alpha before it."""
        kind = self.inputs.dtype
        u = self.inputs @ self.v - self.alpha.astype(kind) * self.u
        self.beta = np.linalg.norm(u, axis=0).astype(np.float64)
        self.u = u / np.where(self.beta > 0, self.beta, 1.0).astype(kind)
        v = self.inputs.T @ self.u - self.beta.astype(kind) * self.v
        self.before, self.alpha = self.alpha, np.linalg.norm(v, axis=0).astype(np.float64)
        self.v = v / np.where(self.alpha > 0, self.alpha, 1.0).astype(kind)


class _Rotations(_State):
    """The solution and the norms of LSQR for each target with each penalty, from the bidiagonalisation."""

    def __init__(self, basis: _Bidiagonal, damp: np.ndarray, penalties: int):
        def each(values: np.ndarray) -> np.ndarray:
            return np.tile(values, penalties)

        self.damp = damp
        self.w = each(basis.v)
        self.solution = np.zeros_like(self.w, dtype=np.float64)
        self.rhobar, self.phibar, self.target_norm = each(basis.alpha), each(basis.beta), each(basis.beta)
        self.norm_squared, self.condition = np.zeros(len(damp)), np.zeros(len(damp))
        self.res2, self.xxnorm, self.z, self.sn2 = (np.zeros(len(damp)) for _ in range(4))
        self.cs2 = -np.ones(len(damp))
        self.residual, self.gradient = each(basis.beta), each(basis.alpha * basis.beta)
        self.length = np.zeros(len(damp))

    def step(self, basis: _Bidiagonal, target: np.ndarray) -> None:
        """Rotate by one step of the basis, as scipy does; `target` holds the column of the basis of each problem."""
        kind = basis.v.dtype
        before, alpha, beta = basis.before[target], basis.alpha[target], basis.beta[target]
        self.norm_squared = self.norm_squared + before**2 + beta**2 + self.damp**2
        rhobar1 = np.hypot(self.rhobar, self.damp)
        c1, s1 = self.rhobar / rhobar1, self.damp / rhobar1
        psi, phibar = s1 * self.phibar, c1 * self.phibar
        rho = np.hypot(rhobar1, beta)
        c, s = rhobar1 / rho, beta / rho
        theta, self.rhobar = s * alpha, -c * alpha
        phi, self.phibar = c * phibar, s * phibar
        self.solution = self.solution + (phi / rho) * self.w
        self.condition = self.condition + ((self.w / rho) ** 2).sum(axis=0)
        self.w = basis.v[:, target] - (theta / rho).astype(kind) * self.w
        self._norms(alpha, rho, theta, phi, psi, s * phi)

    def _norms(
        self, alpha: np.ndarray, rho: np.ndarray, theta: np.ndarray, phi: np.ndarray, psi: np.ndarray, tau: np.ndarray
    ) -> None:
        """Estimate the norms of the solution, of the residual and of its gradient."""
        delta, gambar = self.sn2 * rho, -self.cs2 * rho
        rhs = phi - delta * self.z
        self.length = np.sqrt(self.xxnorm + (rhs / gambar) ** 2)
        gamma = np.hypot(gambar, theta)
        self.cs2, self.sn2, self.z = gambar / gamma, theta / gamma, rhs / gamma
        self.xxnorm = self.xxnorm + self.z**2
        self.res2 = self.res2 + psi**2
        self.residual = np.sqrt(self.phibar**2 + self.res2)
        self.gradient = alpha * np.abs(tau)

    def converged(self, tolerance: float) -> np.ndarray:
        """Tell which columns have converged by scipy's rules."""
        norm = np.sqrt(self.norm_squared)
        relative = self.residual / self.target_norm
        optimality = self.gradient / (norm * self.residual + _EPSILON)
        limit = tolerance + tolerance * norm * self.length / self.target_norm
        singular = norm * np.sqrt(self.condition) >= MAX_CONDITION
        return (relative <= limit) | (optimality <= tolerance) | singular
