"""What numerical libraries are told before they are loaded."""

from collections.abc import MutableMapping


def one_thread(environment: MutableMapping[str, str]) -> None:
    """One thread per rank, and matrix products that do not depend on where in memory a matrix lies.

    Ranks that share cores would fight over them with more threads (40 times slower was measured). Intel's library picks
    another kernel, with other roundings, for another alignment, unless told to be strict: then an agent computes the
    same bits alone or stacked with others. Values that people set themselves stay.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(variable, "1")
    environment.setdefault("MKL_CBWR", "AVX2,STRICT")
