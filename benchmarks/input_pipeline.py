"""Photos to training batches: JPEG to 346 to a crop of 289, on one core.

    python benchmarks/input_pipeline.py --photos ../shared/data/photos

The sides take turns: bare libjpeg-turbo, which decodes and throws away; our
pipeline, packed files to batches on the way to `fit`; and one of Pillow and
NumPy, as torchvision's transforms work. `--fast` is printed with the greatest
and mean difference of its pixels.
"""
