#!/bin/sh
# The data of recipes/paper: original annotation files under data/ become JSONL. Run from the repository's root.
#
#   sh recipes/paper/prepare.sh
#
# Expects, as their authors publish them:
#   data/train2014, data/val2017           COCO's images; data/annotations/instances_val2017.json
#   data/refcoco, refcoco+, refcocog       refs(unc).p or refs(umd).p, and instances.json
#   data/ReasonSeg/test                    X.jpg and X.json (LISA's reasoning segmentation)
#   data/d3                                d3_full_annotations.json, images.pkl, groups.pkl, and d3_images
#   data/ovdeval                           annotations and images, one file and one folder a subset
set -e
for split in train val; do
  vlm-r1 data convert refcoco "data/refcoco/refs(unc).p" data/refcoco/instances.json --out data/refcoco_$split.jsonl --option split=$split
  vlm-r1 data convert refcoco "data/refcoco+/refs(unc).p" data/refcoco+/instances.json --out data/refcoco+_$split.jsonl --option split=$split
  vlm-r1 data convert refcoco "data/refcocog/refs(umd).p" data/refcocog/instances.json --out data/refcocog_$split.jsonl --option split=$split
done
vlm-r1 data convert lisa data/ReasonSeg/test --out data/lisa_test.jsonl --option task=rec
vlm-r1 data convert d3 data/d3/d3_full_annotations.json data/d3/images.pkl data/d3/groups.pkl --out data/d3.jsonl --option negatives=3
vlm-r1 data convert coco data/annotations/instances_val2017.json --out data/coco_filtered.jsonl --option filter=pos_1 --option ask=all
vlm-r1 data convert ovdeval data/ovdeval/annotations/*.json --out data/ovdeval.jsonl
