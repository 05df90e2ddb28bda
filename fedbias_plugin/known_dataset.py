"""What the plugin knows of a data set: its names, files, checksums, home and licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RAW = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"
STEREOTYPES = "Holds offensive stereotypes; research data."


@dataclass(frozen=True)
class DataFile:
    """One file below a data folder.

    ``sha256`` and ``git_blob`` list the digests of the known releases (``git_blob`` is the id git gives the content,
    known where the home is a git repository); a file with another digest is used with a warning. ``url`` is where the
    file is, in a form of several.
    """

    path: str
    sha256: tuple[str, ...] = ()
    git_blob: tuple[str, ...] = ()
    url: str | None = None


@dataclass(frozen=True)
class Form:
    """One shape in which a data set lies on disk: all ``files`` together. ``url`` is the home of a single file.

    ``note`` says which part of the data set it is.
    """

    files: tuple[DataFile, ...]
    rows: int
    url: str | None = None
    note: str = ""

    @classmethod
    def of(cls, path: str, *, rows: int, url: str | None = None, note: str = "", **digests: Any) -> Form:
        """The form of a single file; ``digests`` as :class:`DataFile` takes them."""
        return cls((DataFile(path, **digests),), rows, url, note)


@dataclass(frozen=True)
class KnownDataset:
    """One data set: in which forms it may be found (the first is preferred), and what its owners say.

    ``kind`` is ``clean``, ``biased``, or what a metric asks for by that name; it is the name of the data set itself.
    ``has_labels``: whether its rows have a label to be told from the text (``--task classify``).
    """

    name: str
    kind: str
    title: str
    licence: str
    home: str
    forms: tuple[Form, ...]
    hub_id: str | None = None
    warning: str = ""
    has_labels: bool = False

    @property
    def rows(self) -> int:
        """Rows of the full release."""
        return self.forms[0].rows

    @property
    def fetched_form(self) -> Form | None:
        """The form ``fedbias data fetch`` downloads; None where there is none, as of bundled data."""
        return next((form for form in self.forms if form.url or all(file.url for file in form.files)), None)
