"""List the published experiments with parameters, mIoU and checkpoint file.

  python scripts/list_configs.py                     all of them
  python scripts/list_configs.py pspnet r50 ade20k   those whose names contain all of these words
  python scripts/list_configs.py --markdown          README's overview of the 25 methods

The two mIoU are the published ones: at a single scale, and with several scales and flips. A name is
<file in configs>_<variant>: pspnet_r50-d8_512x1024_40k_cityscapes is
--config=configs/pspnet.py:r50-d8_512x1024_40k_cityscapes.
"""

from absl import flags

from jaxseg import cli, zoo

MARKDOWN = flags.DEFINE_bool("markdown", False, "Print README's overview instead.")


def main(argv: list[str]) -> None:
    """Print the table."""
    if MARKDOWN.value:
        print(zoo.markdown_table())
        return
    print(zoo.text_table(zoo.find(argv[1:])))


if __name__ == "__main__":
    cli.run_main(main, needs_config=False, positional=True)
