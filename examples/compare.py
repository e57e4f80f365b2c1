"""Loss, attention mass and bytes of methods on a text, at one budget: `python compare.py FILE [METHOD ...]`."""

import sys

import sparsight
from sparsight.training import read_documents


def main(file: str, *methods: str) -> None:
    loaded = sparsight.load("smollm2-135m")
    # A quick look. For figures to rely on take sparsight.Protocol() and a long text.
    protocol = sparsight.Protocol(length=128, count=1)
    names = ["oracle", *(methods or ("quest",)), "random"]
    result = sparsight.evaluate(loaded, names, read_documents([file]), protocol, ["1/2"])
    for row in result["rows"]:
        mass = row["mass_of_oracle"]
        kept = "" if mass is None else f"{mass:6.1%} of the oracle's mass"
        print(f"{row['method']:10} {row['nll_delta']:+.4f} nats  {row['bytes_per_token'] / 1e6:.0f} MB a token  {kept}")


if __name__ == "__main__":
    main(*sys.argv[1:])
