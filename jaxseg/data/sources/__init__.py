"""Sources: random access to pairs of image and label, opened by `open_source`.

base.py has the protocol, folder.py reads files in place, records.py prepared records, and shapes.py
draws the embedded data set.
"""

from jaxseg.data.sources.base import ConcatSource as ConcatSource
from jaxseg.data.sources.base import Source as Source
from jaxseg.data.sources.base import guess_channels as guess_channels
from jaxseg.data.sources.base import parse_split as parse_split
from jaxseg.data.sources.base import split_names as split_names
from jaxseg.data.sources.folder import FolderSource as FolderSource
from jaxseg.data.sources.open import open_source as open_source
from jaxseg.data.sources.records import ArrayRecordSource as ArrayRecordSource
