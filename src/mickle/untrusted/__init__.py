"""What strangers wrote, read within a budget of bytes, values, depth and time.

A reader of ours counts before it takes memory (``values.py``). What a library does with such content cannot be
counted from outside: where it may run for ever or fill the memory, it is tried first, or done, in a process beside
this one that the kernel ends (``child.py``): chat templates, tokenizers, pages of a crawl.
"""
