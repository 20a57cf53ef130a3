# make demo   install what is missing, build an image, open a view and show the nested mount
# make test   install what is missing, run the whole suite (as an ordinary account)
# make lint   ruff and mypy
# make wheel  build the wheel and run it in an empty environment
# make fuzz   damage images of ext, squashfs, FAT and exFAT for ten minutes
# make conformance   what needs the network: packages of Debian are installed in a view
# make ltp LTP=DIRECTORY   build the fanotify group of the Linux Test Project from its source, and run it in views
# make bench  measure viewfs beside the kernel and other FUSE servers; writes docs/benchmarks.md
# make bench-devices   the same for character devices; writes docs/devices.md
# make bench-cow       the same for copy-on-write views; writes docs/cow.md
# make bench-calls     what system calls cost that a session is asked about; writes docs/calls.md
# make bench-start     how long commands take from start to end; writes docs/start.md
# make pages  write manual pages and completion scripts anew, from the commands
# make soak   the tests that take long: a million files, hundreds of random trees
# make lock   choose versions of the Python packages anew: tools/locked
# make soak-servers   servers killed for ten minutes, 10,000 mounts, 1,000 at once, 500 random kills, 150,000 hostile reports

.PHONY: ltp demo test lint lock pages wheel fuzz conformance soak soak-servers bench bench-devices bench-cow bench-start bench-calls clean

demo:
	@tools/as-user tools/demo

test:
	@tools/test $(PYTEST_ARGUMENTS)

lint:
	@environment=$$(tools/prepare) && $$environment/bin/ruff check . && $$environment/bin/ruff format --check . \
	    && $$environment/bin/mypy

wheel:
	@tools/check-wheel

fuzz:
	@VIEWFS_FUZZ_SECONDS=150 tools/as-user python -m pytest -p no:cacheprovider \
	    $(addsuffix /test_fuzz.py,$(addprefix tests/unit/,ext squashfs fat twins))

conformance:
	@tools/as-user env VIEWFS_CONFORMANCE=1 VIEWFS_SOAK_SECONDS=900 python -m pytest -p no:cacheprovider tests/conformance

ltp:
	@tools/ltp $(LTP)

bench:
	@tools/bench $(BENCH_ARGUMENTS)

bench-devices:
	@tools/bench --devices $(BENCH_ARGUMENTS)

bench-calls:
	@tools/bench --calls $(BENCH_ARGUMENTS)

bench-start:
	@tools/bench --start $(BENCH_ARGUMENTS)

bench-cow:
	@tools/bench --cow $(BENCH_ARGUMENTS)

soak:
	@tools/as-user env VIEWFS_SOAK_FILES=1000000 VIEWFS_SOAK_TREES=300 VIEWFS_SOAK_SECONDS=3600 VIEWFS_SOAK_NAMES=20000 \
	    python -m pytest -p no:cacheprovider tests/kernel/cow tests/kernel/test_ext_images.py \
	    -k "million or directly or states or very_many_names"
	@tools/as-user env VIEWFS_KILL_STRIDE=1 python -m pytest -p no:cacheprovider tests/kernel/cow -k killed_and_then_changed
	@tools/as-user env VIEWFS_COW_BACKEND=fuse VIEWFS_SOAK_SECONDS=600 python -m pytest -p no:cacheprovider \
	    $(addprefix tests/kernel/cow/test_,diff.py random_work.py real_work.py)

soak-servers:
	@tools/as-user env VIEWFS_SOAK_KILLING=600 VIEWFS_SOAK_READERS=32 VIEWFS_SOAK_CYCLES=2500 VIEWFS_SOAK_MOUNTS=1000 \
	    VIEWFS_SOAK_VIEWS=50 \
	    VIEWFS_KILL_ROUNDS=500 VIEWFS_SOAK_REPORTS=50000 VIEWFS_SOAK_SECONDS=3600 \
	    python -m pytest -p no:cacheprovider -s \
	    $(addprefix tests/kernel/test_,takeover.py cycles.py random_kills.py supervisors.py hostile_servers.py)

pages:
	@tools/pages

lock:
	@tools/lock

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
