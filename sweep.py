"""Run a study, the settings that answer a question, with seeds as replicates: `genlab sweep`.

    python sweep.py sweep=kl_weight                        a study of conf/sweep, and its answer
    python sweep.py sweep=kl_weight dry=true               only its jobs, and what they would cost
    python sweep.py sweep=kl_weight model.kl_weight=0,30   other values of its key
    python sweep.py sweep=kl_weight seed=0,1,2,3           other seeds
    python sweep.py sweep=kl_weight launcher=joblib        started in another way

Completed jobs are not run again; interrupted ones are resumed.
"""

import sys

from genlab.__main__ import main

if __name__ == "__main__":  # launchers import this file again
    sys.exit(main(["sweep", *sys.argv[1:]]))
