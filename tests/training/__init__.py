"""The loop and its settings; the rooms of `tinygpt/training` in folders of their names."""
