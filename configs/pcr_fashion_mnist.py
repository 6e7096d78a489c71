from configs import common


def get_config(arg=None):
    return common.get_config("pcr", "fashion_mnist", arg)
