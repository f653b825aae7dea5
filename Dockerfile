# Offline inference on a CPU. The model is not in the image: mount the folder that Recommender.save_pretrained wrote.
#
#   docker build --tag semid .
#   docker run --rm --network none -v "$PWD/recommender:/model:ro" -v "$PWD:/data" --user "$(id -u)" semid \
#       --model /model --input-path histories.txt --output-path preds.csv --topk 10
#   docker run --rm -p 127.0.0.1:8080:8080 -e SEMID_TOKEN -v "$PWD/recommender:/model:ro" --entrypoint python semid \
#       -m semid_lib.web --model /model --host 0.0.0.0
#
# To get the small CPU build of torch, name an index that has it: --build-arg PIP_EXTRA_INDEX_URL=...

FROM python:3.11.14-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY semid_lib semid_lib
RUN python -m venv /opt/semid
RUN /opt/semid/bin/pip install --no-cache-dir --constraint constraints.txt ".[serve]"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/semid /opt/semid
ENV PATH=/opt/semid/bin:$PATH HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME /model
EXPOSE 8080
ENTRYPOINT ["python", "-m", "semid_lib.predict"]
CMD ["--help"]
