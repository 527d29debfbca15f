"""The kinds of problems of a data set."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of problem.

    Attributes:
        is_error: Whether training would go wrong.
        words: What has the problem, in the plural.
    """

    is_error: bool
    words: str


KINDS = {
    "split": Kind(True, "splits that cannot be opened"),
    "missing label": Kind(True, "images without label"),
    "shared name": Kind(True, "images of the same name, which would share one label"),
    "damaged image": Kind(True, "images that cannot be read"),
    "channels": Kind(True, "images that do not have config.dataset.channels"),
    "not finite": Kind(True, "images that hold NaN or infinity"),
    "range": Kind(True, "images that hold a value far outside the rest"),
    "dtype": Kind(True, "images whose values are of another type than the rest"),
    "statistics": Kind(True, "statistics.json, which could not be made or is wrong"),
    "damaged label": Kind(True, "labels that cannot be read"),
    "value": Kind(True, "labels with values that are not classes"),
    "color": Kind(True, "labels with colours that are not in the table"),
    "size": Kind(True, "labels of another size than their image"),
    "one class": Kind(True, "splits whose labels hold one class only"),
    "all masks": Kind(True, "splits whose labels hold only 0 and 255"),
    "all ignored": Kind(True, "splits whose labels hold nothing but 255 (ignore)"),
    "not learned": Kind(False, "classes that are evaluated and that no training label holds"),
    "masks": Kind(False, "labels that hold only 0 and 255"),
    "ignored": Kind(False, "labels that hold nothing but 255 (ignore)"),
    "unused label": Kind(False, "labels without an image of the same name"),
    "mixed channels": Kind(False, "images that have other channels than the rest"),
    "absent": Kind(False, "classes that no label of any split holds"),
    "absent from val": Kind(False, "classes that no evaluation label holds"),
    "leak": Kind(False, "images of the evaluation split that training sees too"),
}


class MissingClass(NamedTuple):
    """A rule about a class that some split lacks.

    Attributes:
        kind: Key of KINDS.
        split: The split that lacks it.
        text: What that means and what to do.
    """

    kind: str
    split: str
    text: str


# (whether training labels hold a class, whether evaluation labels do) -> the rule
MISSING_CLASS_RULES = {
    (False, True): MissingClass(
        "not learned",
        "train",
        "only evaluation labels hold it, so its IoU will be 0; move an image that holds it to "
        "train.",
    ),
    (True, False): MissingClass(
        "absent from val",
        "val",
        "no evaluation label holds it, so its IoU is unknown; move an image that holds it there.",
    ),
    (False, False): MissingClass(
        "absent",
        "train and val",
        "no label holds it; take it out of the classes, or check the label values.",
    ),
}


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: Key of KINDS.
        split: Title of the split.
        file: The file or the class.
        text: What is wrong and how to correct it.
    """

    kind: str
    split: str
    file: str
    text: str
