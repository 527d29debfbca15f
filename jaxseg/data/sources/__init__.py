"""Sources: pairs of image and label from files (folder.py) and prepared records (records.py), opened by `open_source`."""

from jaxseg.data.sources.base import ConcatSource as ConcatSource
from jaxseg.data.sources.base import Source as Source
from jaxseg.data.sources.base import guess_channels as guess_channels
from jaxseg.data.sources.base import parse_split as parse_split
from jaxseg.data.sources.base import split_names as split_names
from jaxseg.data.sources.folder import FolderSource as Files  # noqa: F401 - until callers are renamed
from jaxseg.data.sources.folder import FolderSource as FolderSource
from jaxseg.data.sources.open import open_source as open_source
from jaxseg.data.sources.records import ArrayRecordSource as ArrayRecordSource
