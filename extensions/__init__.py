"""Operations on point clouds. Everything public is in `extensions.ops`."""
