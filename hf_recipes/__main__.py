from hf_recipes.cli import main

main()
