"""What a rollout is judged by: counts of the routers, tests that stay valid however often one looks, and their verdict.

Pure: no network (but for `prometheus`), no clock, no random numbers. The same rows in the same order give the same judgement.
`sequential` has the mathematics with its sources, `judge` the verdict, `spec` what a strategy says, `rows` what is stored.
"""
