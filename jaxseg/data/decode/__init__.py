"""Bytes to arrays: images of any kind (images.py), labels and label maps (labels.py)."""

from jaxseg.data.decode.formats import IMAGE_FORMATS as IMAGE_FORMATS
from jaxseg.data.decode.formats import detect_format as detect_format
from jaxseg.data.decode.images import Decoded as Decoded
from jaxseg.data.decode.images import Header as Header
from jaxseg.data.decode.images import ImageOptions as ImageOptions
from jaxseg.data.decode.images import check_channels as check_channels
from jaxseg.data.decode.images import decode as decode
from jaxseg.data.decode.images import decode_image as decode_image
from jaxseg.data.decode.images import inspect_image as inspect_image
from jaxseg.data.decode.images import mark_missing as mark_missing
from jaxseg.data.decode.labels import check_sizes as check_sizes
from jaxseg.data.decode.labels import decode_label as decode_label
from jaxseg.data.decode.labels import join_pair as join_pair
from jaxseg.data.decode.labels import make_table as make_table
from jaxseg.data.decode.labels import map_label as map_label
