"""Methods that train the rounding of whole blocks, one a file; a recipe names one under `tuning`.

Each file defines

    Options      frozen dataclass of what a recipe may set; raises ValueError for impossible values. `times`
                 is how many steps of each trajectory are recorded.
    check(net)   raises ValueError for a quantized net, real or of shapes alone, that it cannot tune
    tune(net, target, run, batches, options, *, advance=None) -> Net
                 the quantized net with other codes, and its layout. target: the float net that was quantized;
                 run(net, batch): the denoiser called on one of the batches.
"""
