static void libxl_key_value_list_rand_init(libxl_key_value_list *p)
{
    unsigned count = test_rand(8);

    *p = NULL;
    if (!count && test_rand(2))
        return;
    *p = rand_alloc(2 * count + 2, sizeof(**p));
    for (unsigned i = 0; i < count; i++) {
        (*p)[2 * i] = rand_str();
        (*p)[2 * i + 1] = rand_str_or_null();
    }
}
