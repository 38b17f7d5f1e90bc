"""Compares nearest-neighbour R-1 and mAP of a file's weights and of random weights, before any training.

    python -m experiments.pretrained_retrieval --weights=FILE --data=DIR --model=mobilenetv2_standard_1.0

DIR is a folder of domains (Market-1501 file names). All domains are searched together: images of camera 2 are queries,
images of camera 1 are the gallery.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from metabin_jax import models
from metabin_jax.data import dataset
from metabin_jax.evaluation import retrieval_metrics
from metabin_jax.evaluation.embedding import embed
from metabin_jax.runtime.compilation import use_compilation_cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a file that load_torch can read")
    parser.add_argument("--data", required=True, help="the folder of domains")
    parser.add_argument("--model", default="mobilenetv2_standard_1.0", help="the net of the weights")
    parser.add_argument("--size", type=int, default=96, help="pixels, height and width")
    parser.add_argument("--cache", default="~/.cache/metabin_jax/images", help="where decoded images are kept")
    args = parser.parse_args()

    use_compilation_cache()
    model = models.create(args.model, num_classes=1)
    image = jnp.zeros((1, args.size, args.size, 3))
    random = jax.jit(lambda key: model.init(key, image, train=False))(jax.random.key(0))
    loaded, report = models.load_torch(args.weights, random)
    print(report)
    records = dataset.read("folder", args.data)
    images = dataset.load_images("folder", records, (args.size, args.size), args.cache)
    pid, camid = (np.array([getattr(record, name) for record in records]) for name in ("pid", "camid"))
    query, gallery = camid == 2, camid == 1
    for name, variables in (("random", random), ("loaded", loaded)):
        embedding_ND = embed(model, variables, images)
        metrics = retrieval_metrics(
            embedding_ND[query], embedding_ND[gallery], pid[query], pid[gallery], camid[query], camid[gallery]
        )
        print(f"{name} weights: R-1 {100 * metrics.cmc[1]:.1f} %, mAP {100 * metrics.mAP:.1f} %, {query.sum()} queries")


if __name__ == "__main__":
    main()
