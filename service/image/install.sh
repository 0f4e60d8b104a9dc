#!/bin/sh
# Installs what a lock file names, and nothing else: install.sh LOCK [ENVIRONMENT]
# Without an environment, into the images' own, /opt/stepwedge, compiled: with a read-only root nothing is compiled later.
set -eu

lock=$1
environment=${2:-/opt/stepwedge}
# Secrets of the build: settings of pip (an index of your own), and the certificate that it is known by.
if [ -s /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi
if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi

/build/tools/bin/pip --python "$environment/bin/python" install \
    --quiet --require-hashes --only-binary :all: --no-deps --no-compile -r "$lock"

if [ "$environment" = /opt/stepwedge ]; then
    cd "$environment"/lib/python3.*/site-packages
    # What nothing here imports: packages' own tests, headers to compile against, notebooks' extensions, and of pyarrow
    # its RPC and its S3. The image's tests draw a page and analyse a study with what is left.
    for package in numpy scipy pandas sklearn statsmodels pyarrow; do
        if [ -d "$package" ]; then
            find "$package" -depth -type d -name tests -exec rm -rf {} +
            rm -rf "$package/include"
        fi
    done
    rm -rf jupyterlab_plotly statsmodels/datasets/*/*.csv sqlalchemy/testing
    rm -f pyarrow/*flight* pyarrow/libarrow_s3* pyarrow/_s3fs*.so pyarrow/*.pxi pyarrow/*.pyx
    # The wheel has these under three names, of which the middle one is loaded.
    rm -f pyarrow/libarrow_python*.so pyarrow/libarrow_python*.so.*.*.*
    # What is left has to load: another release may link its libraries in another way.
    if [ -d pyarrow ]; then "$environment/bin/python" -B -c 'import pyarrow.dataset, pyarrow.parquet'; fi
    # By hash and unchecked: dates of files change from layer to layer, and must not make Python compile again.
    # A package may hold a template that is no Python; that is no reason to stop.
    "$environment/bin/python" -m compileall -q -q --invalidation-mode unchecked-hash "$environment/lib" || true
    # Thousands of modules of which a page, drawn once a day in a process of its own, loads a few.
    for package in plotly faker nltk litestar polyfactory statsmodels; do
        if [ -d "$package" ]; then find "$package" -depth -type d -name __pycache__ -exec rm -rf {} +; fi
    done
fi
