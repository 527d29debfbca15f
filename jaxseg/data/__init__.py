"""Data sets: their descriptions, reading them, and batches for training and evaluation.

The hot path, from the ground up; each module imports only from those above it:

    spec          DatasetSpec (classes, palette, label map), DatasetRef, Layout: plain dataclasses
    decode/       bytes to arrays: images of any kind, labels as the numbers that they store
    builtin       the built-in data sets: classes, label maps, layouts
    folder_spec   the spec of a `folder`, from classes.txt (class_list), label_map.txt (label_map)
    sources/      random access to (image, label): files, prepared records, the embedded `shapes`
    catalog       get_spec(name, root, source) and load_spec(dataset): every data set by its name
    augment/      random crops, flips, rotations and colours of one sample
    pipeline      train_batches and eval_samples, which training and evaluation iterate over
    measure       dtype, mean and std, class weights, where an experiment leaves them open

    values and photos check pixels; class_order matches the classes of other data to a run's;
    label_counts and statistics read a whole split; process sets up worker processes.

Beside it is the workshop, which the hot path does not import: validate/ checks and shows a data
set, prepare/ converts downloads and writes records. Importing this package imports no module of it.
"""
