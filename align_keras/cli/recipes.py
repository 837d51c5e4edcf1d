"""`align-keras recipes`: list the shipped recipes, or the fields of one."""

import dataclasses
import json


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="print all fields of this recipe, by name or file",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object"
    )


def run(args):
    """Print a table of the recipes, or the fields of one."""
    from align_keras.training import load_recipe
    from align_keras.training.recipes import recipe_names

    names = [args.recipe] if args.recipe else recipe_names()
    recipes = {name: dataclasses.asdict(load_recipe(name)) for name in names}
    if args.json:
        print(json.dumps(recipes[args.recipe] if args.recipe else recipes))
    elif args.recipe:
        for field, value in recipes[args.recipe].items():
            print(f"{field}: {json.dumps(value)}")
    else:
        _print_table(recipes)


def _print_table(recipes):
    print(f"{'recipe':<22}{'length':>16}{'batch':>8}{'optimizer':>11}  image")
    for name, fields in recipes.items():
        length = f"{fields['steps']:,} steps" if fields["steps"] else ""
        length = length or f"{fields['epochs']:g} epochs"
        print(
            f"{name:<22}{length:>16}{fields['batch_size']:>8,}"
            f"{fields['optimizer']:>11}  {fields['image_size']}"
        )
    print(
        "`align-keras recipes NAME` prints all fields of one; the reference in "
        "docs explains\nthem. `train --set FIELD=VALUE` replaces one."
    )
