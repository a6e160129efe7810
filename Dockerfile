# Everything that the scripts need, for a CPU; for a GPU: docker build --build-arg TORCH=cuda -t residual-detection .
#   docker build -t residual-detection .
#   docker run --rm -v "$PWD/results:/workspace" residual-detection tools/train_det.py --cfg configs/demo.yaml --out /workspace/demo
#   docker run --rm -v "$PWD:/workspace" residual-detection tools/predict.py --weights /workspace/best.pt /workspace/photos --out /workspace/found
#   docker run --rm --gpus all --shm-size 8g -v ... (with TORCH=cuda; loader processes need the shared memory)
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# cpu or cuda: which builds of torch and torchvision. On CUDA Triton builds its launcher with a C compiler.
ARG TORCH=cpu
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib
ENV RESIDUAL_DETECTION_HOME=/workspace/.cache/residual-detection

# The dependencies first: they change less often than the code.
COPY pyproject.toml constraints.txt README.md ./
RUN if [ "$TORCH" = cpu ]; then \
      grep -E '^(torch|torchvision)==' constraints.txt > torch.txt && \
      pip install -r torch.txt --index-url https://download.pytorch.org/whl/cpu; \
    elif [ "$TORCH" = cuda ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* && \
      pip install -c constraints.txt torch torchvision; \
    else echo "TORCH=$TORCH: must be cpu or cuda" >&2; exit 2; fi
COPY backbones/ backbones/
COPY configs/ configs/
COPY datasets/ datasets/
COPY detection/ detection/
COPY tools/ tools/
COPY LICENSE ./
RUN grep -vE '^(torch|torchvision)==' constraints.txt > others.txt && pip install -c others.txt -e ".[fast,video]"

VOLUME /workspace
ENTRYPOINT ["python"]
CMD ["tools/train_det.py", "--help"]
