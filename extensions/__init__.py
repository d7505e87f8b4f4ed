"""Operations on point clouds. Everything public is in `extensions.ops`; `status` says how they are computed."""


def status() -> dict[str, str]:
    """How the operations run here: what POINT_OPS asks for, and for each device where its kernels are, or why not."""
    from extensions.library import status

    return status()
