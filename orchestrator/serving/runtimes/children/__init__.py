"""Scripts for other interpreters: each holds one model whose library does not live in ours. They import nothing of ours."""
