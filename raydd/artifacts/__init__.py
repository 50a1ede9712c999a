"""The distilled set: tensors, card, grid, foreign formats."""
