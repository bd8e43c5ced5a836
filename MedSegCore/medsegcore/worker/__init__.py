"""The warm child process that segments: protocol, server (torch) and client (no torch).

`python -m medsegcore.worker` and `medseg worker` run the server on stdin and stdout.
"""
