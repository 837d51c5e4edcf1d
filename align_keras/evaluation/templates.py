"""Prompts for zero-shot classification, in the place of CLIP's.

CLIP's 80 templates and its names of ImageNet's classes are not ours to ship;
docs/evaluation.md tells how to bring them along in a JSON file.
"""

TEMPLATES = (
    "{}",
    "a photo of {}",
    "a photo of the {}",
    "a close view of {}",
    "{} seen from afar",
    "a drawing of {}",
    "a small {}",
    "a large {}",
)
