"""For the reference: the examples of docstrings are code, and not quotations of Markdown."""

import griffe


class ExamplesAsCode(griffe.Extension):
    """Gives the heading `Example:` the name that griffe knows as a section of code."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Called once for each object that has been read."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
