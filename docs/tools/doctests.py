"""For the API pages: examples of docstrings (>>>) are code there, and not quotations."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object


class Doctests(Extension):  # type: ignore[misc, unused-ignore]
    """Puts the paragraphs of a docstring that begin with >>> into a section of examples."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring and ">>>" in obj.docstring.value:
            obj.docstring.value = "\n\n".join(map(as_section, obj.docstring.value.split("\n\n")))


def as_section(paragraph: str) -> str:
    """The paragraph itself, or the section of an example."""
    if not paragraph.startswith(">>>"):
        return paragraph
    return "Examples:\n" + "\n".join(f"    {line}" for line in paragraph.splitlines())
