"""What every program needs and that knows nothing of networks.

checks       of JSON that comes from outside
cli          command lines from config dataclasses
distributed  several processes that train together
errors       UserError, for mistakes that the user can fix
files        JSON and binary files, written atomically
processes    the CPUs that this process may use
runs         the folder of a run
"""
