static void libxl_string_list_rand_init(libxl_string_list *p)
{
    unsigned count = test_rand(8);

    *p = NULL;
    if (!count && test_rand(2))
        return;
    *p = rand_alloc(count + 1, sizeof(**p));
    for (unsigned i = 0; i < count; i++)
        (*p)[i] = rand_str();
}
