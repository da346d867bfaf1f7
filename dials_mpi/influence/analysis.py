"""What influence datasets say: marginals, entropies, dependence, drift. Plain numpy; no torch, no MPI.

E episodes of T steps, U influence sources of C classes, D local-state bits. Entropies are in nats.
"""

import numpy as np

_LARGEST_JOINT = 4096


def indicators(sources: np.ndarray, classes: int) -> np.ndarray:
    """Classes [..., U] as indicators [..., U, C] float32."""
    return (sources[..., None] == np.arange(classes, dtype=sources.dtype)).astype(np.float32)


def marginals(sources: np.ndarray, classes: int) -> np.ndarray:
    """[U, C] share of each class of each source, over sources [E, T, U]."""
    n_sources = sources.shape[-1]
    numbered = sources.reshape(-1, n_sources) + classes * np.arange(n_sources)
    counts = np.bincount(numbered.ravel(), minlength=n_sources * classes).reshape(n_sources, classes)
    return counts / len(numbered)


def entropy(distributions: np.ndarray) -> np.ndarray:
    """[...] entropies of distributions [..., C].

    Of a source's marginal it is the cross-entropy that the best predictor without memory and input reaches.
    """
    safe = np.where(distributions > 0, distributions, 1)
    return -(distributions * np.log(safe)).sum(axis=-1)


def mutual_information(sources: np.ndarray, history: np.ndarray, classes: int) -> np.ndarray:
    """[U, D] between each source and each single bit of the current local state.

    From counts, less the bias of (classes - 1) / 2n that independent variables would show (Miller and Madow), at least
    0. The whole local state tells more than its single bits; what the AIP gains on the marginal's entropy is a lower
    bound of that.

    Args:
        sources: [E, T, U] uint8.
        history: [E, T, D] uint8, bits.
        classes: C.
    """
    n = sources.shape[0] * sources.shape[1]
    u = indicators(sources, classes).reshape(n, -1)
    ones = (u.T @ history.reshape(n, -1).astype(np.float32)).astype(np.float64)  # [U·C, D]
    total = u.sum(axis=0, dtype=np.float64)[:, None]
    joint = np.stack([total - ones, ones], axis=-1) / n
    joint = joint.reshape(sources.shape[-1], classes, -1, 2).swapaxes(1, 2)  # [U, D, C, 2]
    information = (
        entropy(joint.sum(axis=-1)) + entropy(joint.sum(axis=-2)) - entropy(joint.reshape(*joint.shape[:2], -1))
    )
    return np.maximum(information - (classes - 1) / (2 * n), 0)


def autocorrelation(sources: np.ndarray, classes: int, lags: int) -> np.ndarray:
    """[U, lags] of each source with itself 1 … `lags` steps later in the same episode.

    How much more often than by chance it is what it was: (P(u_t = u_{t+k}) - Σ_c p_c²) / (1 - Σ_c p_c²), which is the
    correlation for two classes. 1 if it always stays what it is, 0 if the next one does not depend on it, or if it
    never changes.

    Args:
        sources: [E, T, U] uint8, T > lags.
    """
    by_chance = (marginals(sources, classes) ** 2).sum(axis=-1)
    same = [(sources[:, :-lag] == sources[:, lag:]).mean(axis=(0, 1)) for lag in range(1, lags + 1)]
    varies = by_chance < 1
    return (
        np.where(varies[:, None], np.stack(same, axis=-1) - by_chance[:, None], 0)
        / np.where(varies, 1 - by_chance, 1)[:, None]
    )


def total_variation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[...] distance of distributions [..., C], 0 to 1."""
    return np.abs(one - other).sum(axis=-1) / 2


def jensen_shannon(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[...] Jensen-Shannon distance of distributions [..., C]: the root of the divergence in nats, 0 to 0.833."""
    divergence = entropy((one + other) / 2) - (entropy(one) + entropy(other)) / 2
    return np.sqrt(np.maximum(divergence, 0))


def predictor_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[...] L1 distances Σ_u |I¹(u|l) - I²(u|l)| of two predictors on the same histories, 0 to 2 (Lemma 2).

    Args:
        one, other: [..., U, C] probabilities; sources are independent given the history, so that the distribution of
            all of them is the product. With more than 4096 joint values the sum of the sources' distances, which is
            never smaller.
    """
    n_sources, classes = one.shape[-2:]
    if classes**n_sources > _LARGEST_JOINT:
        return np.abs(one - other).sum(axis=(-2, -1))
    return np.abs(_joint(one) - _joint(other)).sum(axis=-1)


def _joint(marginal: np.ndarray) -> np.ndarray:
    """[..., U, C] → [..., C^U]."""
    joint = marginal[..., 0, :]
    for source in range(1, marginal.shape[-2]):
        joint = (joint[..., :, None] * marginal[..., source, None, :]).reshape(*joint.shape[:-1], -1)
    return joint
