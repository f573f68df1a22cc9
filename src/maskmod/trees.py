"""Trees of drafted tokens, at the path that is documented; they live in `maskmod.masks.trees`."""

from maskmod.masks.trees import DfsTree, Tree, dfs_tree, ends_from_parents, tree

__all__ = ["DfsTree", "Tree", "dfs_tree", "ends_from_parents", "tree"]
