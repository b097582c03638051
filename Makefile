# Everything runs in .venv, which `make` builds on first use from requirements.txt.
PYTHON ?= python3
VENV := .venv/bin
DEMO := --width 0.5 --input-size 32

.PHONY: demo smoke test test-slow lint clean

demo: .venv/ready
	$(VENV)/python -m latency_lut --engine fbgemm $(DEMO) --output demo/fbgemm.json
	$(VENV)/python search.py --latency-lut demo/fbgemm.json $(DEMO) --data scenes --preset demo --name demo
	$(VENV)/python retrain.py --arch demo --data scenes --engine fbgemm --epochs 12 --train-images 10000 --name demo_retrained
	$(VENV)/python -m nas report runs/demo_retrained
	@echo "look at runs/demo/report.html and runs/demo_retrained/report.html"

# The whole way in a few minutes, with hardly any training: it says that everything works, not how well.
smoke: .venv/ready
	$(VENV)/python -m latency_lut --engine fbgemm --width 0.35 --input-size 32 --output smoke/fbgemm.json
	$(VENV)/python search.py --latency-lut smoke/fbgemm.json --width 0.35 --preset smoke --name found --runs smoke --pareto 2
	$(VENV)/python retrain.py --arch smoke/found --epochs 2 --train-images 640 --name int8 --runs smoke

test: .venv/ready
	$(VENV)/python -m pytest -q -n 2 --dist loadfile

test-slow: .venv/ready
	HYPOTHESIS_PROFILE=random $(VENV)/python -m pytest -q -m "slow or property"

lint: .venv/ready
	$(VENV)/ruff check . && $(VENV)/ruff format --check .

.venv/ready: requirements.txt
	test -x $(VENV)/python || $(PYTHON) -m venv .venv
	$(VENV)/python -m pip install --quiet --requirement requirements.txt
	touch $@

clean:
	rm -rf demo smoke runs .pytest_cache .hypothesis
