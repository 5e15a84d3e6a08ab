"""The README's example runs as printed, with a shorter training."""

import re
from pathlib import Path

import torch

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "seconds=60" in code
    scope: dict[str, object] = {}
    exec(code.replace("seconds=60", "steps=2"), scope)
    assert scope["images"].shape == (16, 1, 8, 8)
    assert torch.isfinite(scope["state"].x).all()


def test_every_file_it_names_is_there() -> None:
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\(([^)#]+?)\)", README)
    modules = re.findall(r"`(\w+\.py)`", README)
    assert len(links) > 5
    assert len(modules) > 10
    for link in links:
        assert link.startswith("https://") or (root / link).exists(), link
    for module in modules:
        assert (root / "tinydiff" / module).exists(), module
