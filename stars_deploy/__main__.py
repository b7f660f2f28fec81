"""`python -m stars_deploy` is the same as `stars-deploy`."""

from stars_deploy.cli import main

if __name__ == "__main__":
    main()
