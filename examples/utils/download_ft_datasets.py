"""Download the fine-tuning sources.

python ./examples/utils/download_ft_datasets.py --save_dir ./datasets --cache_dir ./cache --num_proc 1
"""

from download_pt_datasets import main

if __name__ == "__main__":
    main("fine-tuning")
