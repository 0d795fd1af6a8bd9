"""`python -m petlpack_cli` is the `petlpack` script."""

from petlpack_cli import main

try:
    main()
finally:
    # Under `-m`, CPython dies by SIGINT instead of exiting with our code if the interrupt came inside an exec(), as
    # dataclasses use it: a flag that only the next exec() clears (run_eval_code_obj in pythonrun.c). It was seen once
    # in 500 interrupts.
    exec("")
